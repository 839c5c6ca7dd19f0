"""Prompts of the protocol `trusted`: AGFT's templates without their known errors. All classes have different prompts.

* StanfordCars: the names keep the model year. Without it, 7 pairs of classes have the same prompt.
* ImageNet: the names come from CLIP_benchmark. These names distinguish the two cranes and the two swimsuits. WordNet's
  names replace the two duplicates in CLIP_benchmark's list: n04008634 is "projectile" and n04355933 is "sunglass".
* Caltech101: the two kinds of faces are merged into the class "person". The background is not a class.
* CIFAR, STL10 and SUN397: the template ends with a full stop, as in AGFT.
* Flowers102: the two names that end with a space in AGFT do not end with a space.
* FGVC-Aircraft: the names keep their capital letters, and "Boeing" precedes names that begin with 7.
* TinyImageNet, ImageNet-R and ImageNet-Sketch: the template of ImageNet is used.
* Country211: the template of the projects TTC and AdvFLYP is used.
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
