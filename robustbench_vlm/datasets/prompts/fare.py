"""Prompts of FARE's evaluation: CLIP_benchmark's class names and prompt ensembles (48de38c, MIT).

Datasets without a list of names keep their raw class names, underscores of CIFAR100 included, except that Food101 and
SUN397 get blanks (CLIP_benchmark 0322448, builder.py). ImageNet's list has "missile" and "sunglasses" twice.
"""

from robustbench_vlm.datasets.image_folder import imagenet_class_names
from robustbench_vlm.datasets.prompts.base import PromptRow, PromptSource, read_facts

_FACTS = read_facts("clip_benchmark")


def _as_it_is(raw: str) -> str:
    return raw


def _blanks(raw: str) -> str:
    return raw.replace("_", " ").replace("/", " ")


def _row(name: str) -> PromptRow:
    rule = _blanks if name in ("food101", "sun397") else _as_it_is
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
