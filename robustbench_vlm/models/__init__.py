"""Models: cards that say what a checkpoint is, and zero-shot classifiers made from them."""

from robustbench_vlm.registry import Registry

ARCHITECTURES = Registry("architecture", {"mini": "robustbench_vlm.models.mini:MINI"})
"""Network shapes beside those that open_clip itself names (written "open_clip:ViT-B-32-quickgelu" in a card)."""

MODELS = Registry("model", {})
"""Model cards of other packages; ours are the files model_zoo/<track>/<model>.json."""
