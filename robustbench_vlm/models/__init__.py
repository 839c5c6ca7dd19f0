"""Models: model references, model cards, weights files, networks, and zero-shot classifiers."""

from robustbench_vlm.core.files import package_folder
from robustbench_vlm.core.registry import Registry

ARCHITECTURES = Registry("architecture", {"mini": "robustbench_vlm.models.mini:MINI"})
"""Architectures that open_clip does not have. A card names an architecture of open_clip as "open_clip:ViT-B-32"."""

MODELS = Registry("model", {})
"""Model cards that other packages provide. The cards of this package are the files model_zoo/<track>/<model>.json."""

CONTEXT_LENGTH = 77
"""The context length of a text encoder in tokens, if the configuration of the architecture does not state one."""


def card_names(track: str) -> list[str]:
    """Return the names of a track's models, sorted."""
    return sorted(path.stem for path in (package_folder("model_zoo") / track).glob("*.json"))
