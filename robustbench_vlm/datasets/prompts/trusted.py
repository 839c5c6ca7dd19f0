"""Our wording: AGFT's single prompts without the field's faults; no two classes share a text.

* StanfordCars keeps the model year, without which 7 pairs of classes are one text.
* ImageNet has the names of CLIP_benchmark, which tell the bird from the machine and the swimsuits apart; its own two
  doubles are resolved after WordNet: n04008634 is "projectile", n04355933 is "sunglass".
* Caltech101's two kinds of faces are one class, "person", and its background is no class.
* CIFAR, STL10 and SUN397 have the full stop that AGFT gives them; Flowers102 loses two stray blanks; aircraft keep
  their capitals, with "Boeing" before bare numbers.
* TinyImageNet, ImageNet-R and ImageNet-Sketch ask as ImageNet does. Country211 asks as TTC and AdvFLYP do.
"""

from robustbench_vlm.datasets.prompts.agft import AGFT, stripped
from robustbench_vlm.datasets.prompts.base import Row, Wording, facts
from robustbench_vlm.datasets.training_folder import class_names

_THIS = "This is a photo of a {}."
_NAMES = facts("clip_benchmark")["names"]
_IMAGENET = dict(zip(class_names(), _NAMES["imagenet"], strict=True)) | {
    "n04008634": "projectile",
    "n04355933": "sunglass",
}

TRUSTED: Wording = {
    **AGFT,
    "flowers102": Row("A photo of a {}, a type of flower.", stripped),
    "imagenet": Row(_THIS, names=_IMAGENET),
    "stanford-cars": Row("A photo of a {}.", lambda raw: raw),
    "tiny-imagenet": Row(_THIS, names=_IMAGENET),
    "imagenet-r": Row(_THIS, names=_IMAGENET),
    "imagenet-sketch": Row(_THIS, names=_IMAGENET),
    "country211": Row("A photo I took in {}.", listed=tuple(_NAMES["country211"])),
    "hateful-memes": Row("This is a photo of {}.", listed=("a harmless meme", "a hateful meme")),
}
