"""Convert a released checkpoint to safetensors and a model card, which `vlmbench run --model` accepts."""

from pathlib import Path
from typing import Any

import torch

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.strict_json import read_json
from robustbench_vlm.core.text import terminal_text
from robustbench_vlm.models.card import ModelCard, Weights, find_card, is_card_file, read_card, write_card
from robustbench_vlm.models.checkpoint_files import find_checkpoint
from robustbench_vlm.models.checkpoint_formats import State, check_fit
from robustbench_vlm.models.loading import assemble
from robustbench_vlm.models.open_clip import load_architecture
from robustbench_vlm.models.weights import load_encoders, save_weights, split_encoders

_LONGEST_NAME = 180
"""The largest accepted length of a model name in bytes. File systems allow file names of 255 bytes, and the file names
of a model are longer than the model name.
"""


def convert(
    file: Path,
    base: str,
    track: str,
    folder: Path,
    *,
    name: str = "",
    defense: str = "",
    whole_base: str = "",
) -> Path:
    """Write the encoders of a checkpoint as safetensors with a model card, and return the path of the card.

    This function downloads no file, except weights of a base whose card is in another folder.

    Args:
        file: The checkpoint: a file, the index of a checkpoint in several files, or a folder that `save_pretrained`
            wrote.
        base: The model from which the checkpoint was fine-tuned. Its architecture, mean and std are used. If the
            checkpoint does not have a text encoder, the new card uses the text encoder of `base`. If `base` is "", the
            checkpoint must be a whole CLIP (image encoder, text encoder and logit scale).
        track: The track of the base.
        folder: The folder for the new files.
        name: The name of the new model. If it is "", the name is the file name without its extensions.
        defense: The defense that the model was trained with, for the card.
        whole_base: The model whose architecture, mean and std are used if `base` is "".

    Raises:
        UserError: The file is not a checkpoint, its format is unknown, or its tensors do not fit the architecture of
            the base. The folder already has a card with this name that was made from another file.
    """
    files = find_checkpoint(file)
    name = name or _stem(file)
    _check_name(name)
    if base:
        find_card(base, track)
    encoders = load_encoders(file)
    if not base and not (encoders.text and whole_base):
        raise UserError(
            f"{file} contains only an image encoder, so a text encoder is needed: give the model that was"
            " fine-tuned with --base, such as --base clip"
        )
    base = base or whole_base
    parent = find_card(base, track)
    origin = {"converted_from": terminal_text(file.name), "sha256": files.sha256, "layout": encoders.checkpoint_format}
    _check_free(folder / f"{name}.json", origin)
    image, text = _expected(parent)
    try:
        check_fit("image", encoders.image, image)
        if encoders.text:
            check_fit("text", encoders.text, text)
    except UserError as error:
        raise UserError(
            f"{file} does not fit {parent.architecture}, the architecture of {base!r}: {error} If another model"
            " was fine-tuned, give it with --base, and give its track with --track"
        ) from error
    if encoders.checkpoint_format == "transformers":
        _check_activation(files.path.with_name("config.json"), parent.architecture)
    own_base, text_weights = ("", None) if encoders.text else _text_of_base(parent, base, track, folder, name)
    if encoders.text:
        text_weights = save_weights(encoders.text, folder / f"{name}-text.safetensors")
    card = ModelCard(
        name=name,
        architecture=parent.architecture,
        image=save_weights(encoders.image, folder / f"{name}.safetensors"),
        text=text_weights,
        defense=defense,
        training=origin,
        notes="converted by vlmbench",
        base=own_base,
        mean=parent.mean,
        std=parent.std,
    )
    write_card(card, folder / f"{name}.json")
    return folder / f"{name}.json"


def _expected(parent: ModelCard) -> tuple[State, State]:
    """Return the names and shapes of the tensors that the image encoder and the text encoder of `parent` must have."""
    with torch.device("meta"):
        return split_encoders(load_architecture(parent.architecture).build())


def _check_name(name: str) -> None:
    """Raise UserError if a name cannot be the name of a model and of its files."""
    if Path(name).name != name or name == "..":
        raise UserError(f"the name {name!r} is a path: give a name such as fare-1, and give the folder with --out")
    if not name.isprintable():
        raise UserError(f"the name {name!r} has unprintable characters: give a name such as fare-1 with --name")
    if len(name.encode()) > _LONGEST_NAME:
        raise UserError(
            f"the name {name[:20]}... has {len(name.encode())} bytes, expected at most {_LONGEST_NAME}: give a shorter"
            " name with --name"
        )


def _check_activation(config: Path, architecture: str) -> None:
    """Raise UserError if the config.json of a CLIP names an activation function that `architecture` does not use.

    The tensors do not show the activation function. A wrong activation function lowers the accuracy without an error.
    """
    if not config.is_file():
        return
    values = read_json(config, "the configuration")
    vision = values.get("vision_config") if isinstance(values, dict) else None
    stated = vision.get("hidden_act", "quick_gelu") if isinstance(vision, dict) else "quick_gelu"
    used = "quick_gelu" if load_architecture(architecture).config.get("quick_gelu") else "gelu"
    if stated != used:
        raise UserError(
            f"{config} states the activation function {stated}, but {architecture} uses {used}: give a base with the"
            " stated activation function with --base"
        )


def _check_free(card: Path, origin: dict[str, Any]) -> None:
    """Raise UserError if the card exists but was made from another file.

    Different models often have the same file name, such as "model_best".
    """
    if card.is_file() and (existing := read_card(card).training) != origin:
        raise UserError(
            f"{card} already exists and was made from {existing.get('converted_from', 'another model')}: give the new"
            " model another name with --name, or another folder with --out"
        )


def _stem(file: Path) -> str:
    # Remove all extensions, because a name such as TeCoAmodel_best.pth.tar has two.
    return file.name.partition(".")[0].lower() or "model"


def _text_of_base(parent: ModelCard, base: str, track: str, folder: Path, name: str) -> tuple[str, Weights | None]:
    """Return the fields `base` and `text` of the new card, whose checkpoint has no text encoder.

    If the text encoder of `parent` comes from another model, that other model is the base of the new card. A card may
    name only card files in its own folder. The text encoder of a card file in another folder is therefore copied.
    """
    reference = parent.base_reference if parent.base else base
    if not is_card_file(reference):
        return reference, None
    path, own = Path(reference).resolve(), folder.resolve()
    if path.is_relative_to(own):
        return path.relative_to(own).as_posix(), None
    text = split_encoders(assemble(find_card(reference, track), track).network)[1]
    return "", save_weights(text, folder / f"{name}-text.safetensors")
