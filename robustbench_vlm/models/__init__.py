"""Models: references, cards, weights, and zero-shot classifiers made from them."""

from robustbench_vlm.core.files import package_folder
from robustbench_vlm.core.registry import Registry

ARCHITECTURES = Registry("architecture", {"mini": "robustbench_vlm.models.mini:MINI"})
"""Architectures in addition to those of open_clip, which a card names as "open_clip:ViT-B-32-quickgelu"."""

MODELS = Registry("model", {})
"""Model cards of other packages; the cards of this package are the files model_zoo/<track>/<model>.json."""


def card_names(track: str) -> list[str]:
    """Return the names of the models of a track, sorted."""
    return sorted(path.stem for path in (package_folder("model_zoo") / track).glob("*.json"))
