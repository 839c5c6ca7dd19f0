"""From a card to a network: which towers it has, where each comes from, and the identity of them all."""

import contextlib
import dataclasses
import hashlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import cache_folder
from robustbench_vlm.core.fingerprint import fingerprint
from robustbench_vlm.core.progress import OnProgress, Progress
from robustbench_vlm.core.registry import unknown
from robustbench_vlm.models.card import ModelCard, Weights, find_card, trained_folder
from robustbench_vlm.models.checkpoint_formats import State, Towers, check_fit
from robustbench_vlm.models.open_clip import Architecture, load_architecture
from robustbench_vlm.models.reference import OPEN_CLIP
from robustbench_vlm.models.weights import cached, load_towers, load_weights, locate, remember, split_towers


@dataclass(frozen=True)
class Assembled:
    """A network with its weights, the architecture with the pixels that it wants, and the identity of both."""

    network: nn.Module
    architecture: Architecture
    digest: str
    """sha256 over architecture and weight digests."""


def assemble(card: ModelCard, track: str) -> Assembled:
    """Return the network that a card describes, fetching what is not there yet.

    Raises UserError where nobody has released it, where a file is missing, damaged or another one, where the weights do
    not fit the architecture, and where a download fails.
    """
    if not card.has_weights:
        raise _not_released(card, track)
    if card.pretrained:
        found = _pretrained(card.architecture, card.pretrained)
    elif card.base:
        found = _on_base(card, track)
    else:
        found = _from_files(card)
    return _with_own_pixels(found, card)


def fetch(card: ModelCard, track: str, on_progress: OnProgress) -> None:
    """Fetch released weights that a card needs and that are not in the cache; open_clip fetches its own when asked.

    `on_progress` counts megabytes. Raises UserError where a download fails, and where only a person can fetch them.
    """
    if card.base:
        fetch(_base(card, track), track, on_progress)
    if card.image and not card.image.is_bundled and not cached(card.image).is_file():
        began, file = time.monotonic(), card.image.file

        def in_megabytes(progress: Progress) -> None:
            done = progress.done
            total = max(progress.total or done, 1)
            left = (time.monotonic() - began) * (total - done) / max(done, 1)
            on_progress(Progress(done // 10**6, total // 10**6, left, f"MB of {file}"))

        locate(Path(card.folder), card.image, in_megabytes)


def architecture_of(card: ModelCard) -> Architecture:
    """Return a card's architecture, with the pixel constants that the model was trained with."""
    architecture = load_architecture(card.architecture)
    if card.mean and card.std:
        return dataclasses.replace(architecture, mean=card.mean, std=card.std)
    return architecture


def _pretrained(architecture: str, tag: str) -> Assembled:
    import open_clip

    built = load_architecture(architecture)
    name = architecture.removeprefix(OPEN_CLIP)
    if tag not in open_clip.list_pretrained_tags_by_model(name):
        raise UserError(unknown(f"pretrained tag of {name}", tag, open_clip.list_pretrained_tags_by_model(name)))
    settings = open_clip.get_pretrained_cfg(name, tag)
    _check_activation(built, name, tag, is_quick=bool(settings.get("quick_gelu")))
    mean, std = (tuple(settings.get(key) or getattr(built, key)) for key in ("mean", "std"))
    built = dataclasses.replace(built, mean=mean, std=std)
    try:
        with _unlogged():
            network = open_clip.create_model(name, pretrained=tag)
    except Exception as error:  # the hub client raises many kinds of network and cache errors
        raise UserError(
            f"cannot fetch {architecture}/{tag}: {error}; check the network, or fetch the weights elsewhere and write a"
            " card"
        ) from error
    state = {key: fingerprint(_digest(value)) for key, value in network.state_dict().items()}
    digest = fingerprint([architecture, built.mean, built.std, state])
    remember(cache_folder() / "models" / f"{name}-{tag}.sha256", digest, f"the weights {architecture}/{tag}")
    return Assembled(network, built, digest)


def _check_activation(built: Architecture, name: str, tag: str, *, is_quick: bool) -> None:
    """Raise UserError where weights would run with another activation than that of their training."""
    if is_quick == bool(built.config.get("quick_gelu")):
        return
    other = f"{name}-quickgelu" if is_quick else name.removesuffix("-quickgelu")
    raise UserError(
        f"the weights {tag} of {name} were trained with {'QuickGELU' if is_quick else 'GELU'}, and"
        f" {OPEN_CLIP}{name} has the other: take {OPEN_CLIP}{other}/{tag}"
    )


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Keep the logs of open_clip and the hub's client off the terminal: what fails is raised, and said once."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _from_files(card: ModelCard) -> Assembled:
    assert card.image
    network = load_architecture(card.architecture).build()
    towers, digest = _towers(card, card.image)
    digests, text = [digest], towers.text
    if card.text:
        text, digests = load_weights(Path(card.folder), card.text), [digest, card.text.sha256]
    _fill(card, network, towers.image, text)
    return Assembled(network, load_architecture(card.architecture), fingerprint([card.architecture, *digests]))


def _on_base(card: ModelCard, track: str) -> Assembled:
    assert card.image
    parent = _base(card, track)
    if parent.architecture != card.architecture:
        raise UserError(
            f"{card.name!r} is {card.architecture}, but its base {card.base!r} on the track {track!r} is"
            f" {parent.architecture}: name the track of the base by --track, or mend the card"
        )
    base = assemble(parent, track)
    towers, digest = _towers(card, card.image)
    _fill(card, base.network, towers.image, {})
    return Assembled(
        base.network, load_architecture(card.architecture), fingerprint([card.architecture, digest, base.digest])
    )


def _base(card: ModelCard, track: str) -> ModelCard:
    parent = find_card(card.base_reference, track)
    if parent.base:
        raise UserError(f"the base {card.base!r} of {card.name!r} has a base itself: name {parent.base!r} in the card")
    return parent


def _towers(card: ModelCard, weights: Weights) -> tuple[Towers, str]:
    """Return the towers in a file of weights, and the file's digest."""
    path, digest = locate(Path(card.folder), weights)
    return load_towers(path, weights.layout), digest


def _fill(card: ModelCard, network: nn.Module, image: State, text: State) -> None:
    """Put the towers into a network; an empty `text` keeps the network's own."""
    own_image, own_text = split_towers(network)
    try:
        check_fit("image", image, own_image)
        if text or not card.base:
            check_fit("text", text, own_text)
    except UserError as error:
        raise UserError(
            f"the weights of {card.name!r} do not fit {card.architecture!r}: {error} The card names the wrong"
            " architecture or the wrong file"
        ) from None
    tower = {f"visual.{key}": value for key, value in image.items()}
    network.load_state_dict({**network.state_dict(), **tower, **text})


def _with_own_pixels(found: Assembled, card: ModelCard) -> Assembled:
    if not card.mean:
        return found
    return dataclasses.replace(
        found, architecture=architecture_of(card), digest=fingerprint([found.digest, card.mean, card.std])
    )


def _not_released(card: ModelCard, track: str) -> UserError:
    own = trained_folder(track, card.name)
    return UserError(
        f"nobody has released the weights of {card.name!r}: train it by `vlmbench train {card.defense} --track {track}"
        f" --images DIR`, and the same command takes it from {own / f'{card.name}.json'}"
    )


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
