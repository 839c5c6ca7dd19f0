"""The cache of weights files: paths of cached files, and a list of the weights that are missing in the cache.

This module does not import torch, so commands can look for missing files before they import torch.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import cache_folder, inside
from robustbench_vlm.core.hub_access import hub_cache
from robustbench_vlm.models.card import WEIGHT_SUFFIXES, ModelCard, Weights, find_card, trained_folder
from robustbench_vlm.models.reference import OPEN_CLIP, HuggingFaceModel, MemoryModel, parse_reference


@dataclass(frozen=True)
class MissingWeights:
    """A weights file of a model, or of its base, that is not in the cache."""

    model: str
    """The model reference that the user gave. If it had a test-time defense, the defense is removed."""
    file: str
    """The name of the file, or open_clip:ARCH/TAG."""
    url: str = ""
    """The download address in the card. "" if open_clip downloads the weights."""
    page: str = ""
    """The web page of a file that only a person can download."""

    @property
    def pretrained(self) -> bool:
        """Whether open_clip downloads the weights."""
        return not self.url and not self.page


def cached(weights: Weights) -> Path:
    """Return the path of a downloaded file in the cache. Each download address has a separate folder."""
    address = hashlib.sha256((weights.url or weights.page).encode()).hexdigest()[:16]
    return inside(cache_folder() / "models" / address, weights.file)


def digest_record(architecture: str, tag: str) -> Path:
    """Return the path of the file that stores the digest of pretrained weights of open_clip.

    The digest is stored when the weights are loaded for the first time.
    """
    return cache_folder() / "models" / f"{architecture.removeprefix(OPEN_CLIP)}-{tag}.sha256"


def in_hub_cache(repository: str) -> bool:
    """Return whether the cache of the Hugging Face hub has a weights file of a repository, OWNER/NAME."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = (
        Path(hub_cache() or constants.HF_HUB_CACHE)
        / repo_folder_name(repo_id=repository, repo_type="model")
        / "snapshots"
    )
    return any(path.suffix in WEIGHT_SUFFIXES and path.exists() for path in folder.glob("*/*"))


def hub_cache_has_models() -> bool:
    """Return whether the cache of the Hugging Face hub has files of any model."""
    from huggingface_hub import constants

    return any(Path(hub_cache() or constants.HF_HUB_CACHE).glob("models--*"))


def missing_weights(reference: str, track: str) -> list[MissingWeights]:
    """Return the weights of a model and of its base that must be downloaded.

    The list is empty for models without a card. Pretrained weights of open_clip count as missing until they have been
    loaded once. Raises UserError if the weights were never released.
    """
    model = parse_reference(reference).model
    if isinstance(model, MemoryModel | HuggingFaceModel):
        return []
    card = find_card(str(model), track)
    if not card.has_weights:
        raise not_released(card, track)
    return _missing_of(card, str(model), track)


def not_released(card: ModelCard, track: str) -> UserError:
    """Return the error for a model whose weights were never released. It says how to train the model."""
    own = trained_folder(track, card.name)
    return UserError(
        f"no public weights exist for {card.name!r}: train the model with `vlmbench train {card.defense} --track"
        f" {track} --images DIR`, then repeat this command, which will read {own / f'{card.name}.json'}"
    )


def _missing_of(card: ModelCard, model: str, track: str) -> list[MissingWeights]:
    below = _missing_of(find_card(card.base_reference, track), model, track) if card.base else []
    if card.pretrained:
        is_known = digest_record(card.architecture, card.pretrained).is_file()
        return below + [MissingWeights(model, f"{card.architecture}/{card.pretrained}")] * (not is_known)
    return below + [
        MissingWeights(model, weights.file, weights.url, weights.page)
        for weights in (card.image, card.text)
        if weights and not weights.is_bundled and not cached(weights).is_file()
    ]
