"""The wording of TeCoA and of TGA-ZSR, whose code shares it, with its faults.

Read in cvlab-columbia/ZSRobust4FoundationModel e3d6c63, replace/torchvision.datasets, and zhyblue424/TGA-ZSR c955023,
replace/datasets and utils.py. Data sets without a prompt of their own get one without a full stop. TeCoA's Caltech101
has no list of classes at all, so its row is TGA's: the raw folder names, both kinds of faces apart. One sentence on
PCAM has a typing error. Two classes with one text: the 7 pairs of StanfordCars and three of ImageNet that AGFT has too.
"""

from robustbench_vlm.datasets.prompts.agft import EUROSAT_NAMES, TISSUE, caltech256_name, with_maker
from robustbench_vlm.datasets.prompts.base import Row, Wording
from robustbench_vlm.datasets.training_folder import class_names

_THIS = "This is a photo of a {}"
_PHOTO = "A photo of a {}."


def _car(raw: str) -> str:
    return raw[:-5].lower().replace("_", " ").replace("-", " ")


def _aircraft(raw: str) -> str:
    return with_maker(raw).lower().replace("_", " ")


_PCAM = dict(zip(TISSUE, (f"Tthis is a photo of {TISSUE[0]}.", f"This is a photo of {TISSUE[1]}."), strict=True))

TECOA: Wording = {
    "caltech101": Row(_THIS),
    "caltech256": Row(_PHOTO, caltech256_name),
    "cifar10": Row(_THIS),
    "cifar100": Row(_THIS),
    "dtd": Row("A surface with a {} texture."),
    "eurosat": Row("A centered satellite photo of {}.", names=EUROSAT_NAMES),
    "fgvc-aircraft": Row("A photo of a {}, a type of aircraft.", _aircraft),
    "flowers102": Row("A photo of a {}, a type of flower."),
    "food101": Row("A photo of {}, a type of food."),
    "imagenet": Row(_THIS, names=class_names()),
    "oxford-pets": Row("A photo of a {}, a type of pet."),
    "pcam": Row("{}", listed=tuple(_PCAM.values())),
    "stanford-cars": Row(_PHOTO, _car),
    "stl10": Row(_THIS),
    "sun397": Row(_THIS),
}
TGA: Wording = TECOA
