"""Prompts of FARE's evaluation: the class names and prompt ensembles of CLIP_benchmark (48de38c, MIT).

If CLIP_benchmark lacks a list of class names for a dataset, the raw class names are used, for example with the
underscores of CIFAR100. In Food101 and SUN397, spaces replace the underscores (CLIP_benchmark 0322448, builder.py).
Known errors: ImageNet's list has "missile" and "sunglasses" twice.
"""

from robustbench_vlm.datasets.image_folder import imagenet_class_names
from robustbench_vlm.datasets.prompts.base import PromptRow, PromptSource, read_facts

_FACTS = read_facts("clip_benchmark")


def _unchanged(raw: str) -> str:
    return raw


def _with_spaces(raw: str) -> str:
    return raw.replace("_", " ").replace("/", " ")


def _row(name: str) -> PromptRow:
    rule = _with_spaces if name in ("food101", "sun397") else _unchanged
    return PromptRow(tuple(_FACTS["templates"][name]), rule, listed=tuple(_FACTS["names"].get(name, ())))


_IMAGENET = PromptRow(
    tuple(_FACTS["templates"]["imagenet"]),
    names=dict(zip(imagenet_class_names(), _FACTS["names"]["imagenet"], strict=True)),
)
FARE: PromptSource = {
    **{name: _row(name) for name in _FACTS["templates"]},
    "imagenet": _IMAGENET,
    "imagenet-r": _IMAGENET,
    "imagenet-sketch": _IMAGENET,
}
