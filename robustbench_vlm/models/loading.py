"""Load the network of a model card: find the weights files, check them, and compute the digest of the model."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.fingerprint import fingerprint
from robustbench_vlm.core.progress import OnProgress, Progress
from robustbench_vlm.models.card import ModelCard, Weights, find_card
from robustbench_vlm.models.checkpoint_formats import Encoders, State, check_fit
from robustbench_vlm.models.open_clip import (
    Architecture,
    constants_digest,
    load_architecture,
    load_pretrained,
    tokenizer_digest,
)
from robustbench_vlm.models.reference import parse_reference
from robustbench_vlm.models.weights import load_encoders, load_weights, locate, split_encoders
from robustbench_vlm.models.weights_cache import cached, not_released


@dataclass(frozen=True)
class Assembled:
    """A network with its weights, its architecture, and a digest of the weights and the architecture."""

    network: nn.Module
    architecture: Architecture
    """The architecture, with the mean and std of the model."""
    digest: str
    """sha256 over the name of the architecture, the digests of the weights files, the tokenizer and configuration of an
    architecture of open_clip, and the mean and std if the card has them.
    """


def assemble(card: ModelCard, track: str) -> Assembled:
    """Return the network of a card with its weights.

    Weights that have a download address and are not in the cache are downloaded.

    Raises UserError if the weights were never released, do not fit the architecture, or cannot be downloaded. Also
    raises UserError if a file is missing, is damaged, or has a wrong digest.
    """
    if not card.has_weights:
        raise not_released(card, track)
    if card.pretrained:
        found = Assembled(*load_pretrained(card.architecture, card.pretrained))
    elif card.base:
        found = _on_base(card, track)
    else:
        found = _from_files(card)
    return _with_own_pixels(found, card)


def fetch(card: ModelCard, track: str, on_progress: OnProgress) -> None:
    """Download the weights files of a card that are not in the cache.

    This function does not download weights of open_clip. open_clip downloads them when a model is loaded. The unit of
    `on_progress` is megabytes. Raises UserError if a download fails, or if a file cannot be downloaded automatically.
    """
    if card.base:
        fetch(_base(card, track), track, on_progress)
    for weights in (card.image, card.text):
        if weights and not weights.is_bundled and not cached(weights).is_file():
            _fetch_file(card, weights, on_progress)


def _fetch_file(card: ModelCard, weights: Weights, on_progress: OnProgress) -> None:
    began = time.monotonic()

    def in_megabytes(progress: Progress) -> None:
        done = progress.done
        total = max(progress.total or done, 1)
        left = (time.monotonic() - began) * (total - done) / max(done, 1)
        on_progress(Progress(done // 10**6, total // 10**6, left, f"MB of {weights.file}"))

    locate(Path(card.folder), weights, in_megabytes)


def fetch_all(reference: str, track: str, on_progress: OnProgress) -> None:
    """Download the weights of a model and of its base, including weights of open_clip, unless they are in the cache.

    Raises the errors of `fetch` and `load_pretrained`.
    """
    card = find_card(str(parse_reference(reference).model), track)
    fetch(card, track, on_progress)
    origin = find_card(card.base_reference, track) if card.base else card
    if origin.pretrained:
        load_pretrained(origin.architecture, origin.pretrained)


def architecture_of(card: ModelCard) -> Architecture:
    """Return the architecture of a card. A mean and std in the card replace those of the architecture."""
    architecture = load_architecture(card.architecture)
    if card.mean and card.std:
        return dataclasses.replace(architecture, mean=card.mean, std=card.std)
    return architecture


def _from_files(card: ModelCard) -> Assembled:
    assert card.image
    network = load_architecture(card.architecture).build()
    encoders, digest = _encoders(card, card.image)
    digests, text = [digest], encoders.text
    if card.text:
        # The digest is computed from the file, because the card may state no digest.
        text, text_digest = load_weights(Path(card.folder), card.text)
        digests.append(text_digest)
    _fill(card, network, encoders.image, text)
    architecture = load_architecture(card.architecture)
    digests += [*tokenizer_digest(architecture), *constants_digest(architecture)]
    return Assembled(network, architecture, fingerprint([card.architecture, *digests]))


def _on_base(card: ModelCard, track: str) -> Assembled:
    assert card.image
    parent = _base(card, track)
    if parent.architecture != card.architecture:
        raise UserError(
            f"{card.name!r} has the architecture {card.architecture}, but its base {card.base!r} on the track {track!r}"
            f" has {parent.architecture}: give the track of the base with --track, or correct the card"
        )
    base = assemble(parent, track)
    encoders, digest = _encoders(card, card.image)
    _fill(card, base.network, encoders.image, {})
    return Assembled(
        base.network, load_architecture(card.architecture), fingerprint([card.architecture, digest, base.digest])
    )


def _base(card: ModelCard, track: str) -> ModelCard:
    parent = find_card(card.base_reference, track)
    if parent.base:
        raise UserError(
            f"the base {card.base!r} of {card.name!r} also has a base, {parent.base!r}, but the base of a card"
            f" must have its own text encoder: write {parent.base!r} in the card"
        )
    return parent


def _encoders(card: ModelCard, weights: Weights) -> tuple[Encoders, str]:
    """Return the encoders in a weights file, and the sha256 of the file."""
    path, digest = locate(Path(card.folder), weights)
    return load_encoders(path, weights.layout), digest


def _fill(card: ModelCard, network: nn.Module, image: State, text: State) -> None:
    """Load the weights of both encoders into a network. If `text` is empty, the text encoder is not changed."""
    own_image, own_text = split_encoders(network)
    try:
        check_fit("image", image, own_image)
        if text or not card.base:
            check_fit("text", text, own_text)
    except UserError as error:
        raise UserError(
            f"the weights of {card.name!r} do not fit {card.architecture!r}: {error} Correct the"
            " architecture or the file in the card"
        ) from None
    visual = {f"visual.{key}": value for key, value in image.items()}
    network.load_state_dict({**network.state_dict(), **visual, **text})


def _with_own_pixels(found: Assembled, card: ModelCard) -> Assembled:
    if not card.mean:
        return found
    return dataclasses.replace(
        found, architecture=architecture_of(card), digest=fingerprint([found.digest, card.mean, card.std])
    )
