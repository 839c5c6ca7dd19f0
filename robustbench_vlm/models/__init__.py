"""Models: cards that say what a checkpoint is, and zero-shot classifiers made from them."""

from robustbench_vlm.core.files import package_folder
from robustbench_vlm.core.registry import Registry

ARCHITECTURES = Registry("architecture", {"mini": "robustbench_vlm.models.mini:MINI"})
"""Network shapes beside those that open_clip itself names (written "open_clip:ViT-B-32-quickgelu" in a card)."""

MODELS = Registry("model", {})
"""Model cards of other packages; ours are the files model_zoo/<track>/<model>.json."""


def card_names(track: str) -> list[str]:
    """Return the names of the models of a track, sorted."""
    return sorted(path.stem for path in (package_folder("model_zoo") / track).glob("*.json"))
