"""Prompts of the protocol `trusted`: AGFT's templates without known faults; no two classes share a text.

* StanfordCars keeps the model year, without which 7 pairs of classes are one text.
* ImageNet has the names of CLIP_benchmark, which distinguish the two cranes and the two swimsuits; the two duplicates
  that remain are resolved with WordNet: n04008634 is "projectile", n04355933 is "sunglass".
* Caltech101's two kinds of faces are one class, "person"; its background is not a class.
* CIFAR, STL10 and SUN397 have the full stop that AGFT gives them; Flowers102 loses two stray blanks; aircraft keep
  their capitals, with "Boeing" before bare numbers.
* TinyImageNet, ImageNet-R and ImageNet-Sketch use ImageNet's template. Country211 has the template of TTC and AdvFLYP.
"""

from robustbench_vlm.datasets.image_folder import imagenet_class_names
from robustbench_vlm.datasets.prompts.agft import AGFT, stripped
from robustbench_vlm.datasets.prompts.base import PromptRow, PromptSource, read_facts

_THIS = "This is a photo of a {}."
_NAMES = read_facts("clip_benchmark")["names"]
_IMAGENET = dict(zip(imagenet_class_names(), _NAMES["imagenet"], strict=True)) | {
    "n04008634": "projectile",
    "n04355933": "sunglass",
}

TRUSTED: PromptSource = {
    **AGFT,
    "flowers102": PromptRow("A photo of a {}, a type of flower.", stripped),
    "imagenet": PromptRow(_THIS, names=_IMAGENET),
    "stanford-cars": PromptRow("A photo of a {}.", lambda raw: raw),
    "tiny-imagenet": PromptRow(_THIS, names=_IMAGENET),
    "imagenet-r": PromptRow(_THIS, names=_IMAGENET),
    "imagenet-sketch": PromptRow(_THIS, names=_IMAGENET),
    "country211": PromptRow("A photo I took in {}.", listed=tuple(_NAMES["country211"])),
    "hateful-memes": PromptRow("This is a photo of {}.", listed=("a harmless meme", "a hateful meme")),
}
