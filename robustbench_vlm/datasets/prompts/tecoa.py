"""The class names and prompt templates that TeCoA and TGA-ZSR share, including their errors.

Sources: cvlab-columbia/ZSRobust4FoundationModel e3d6c63, replace/torchvision.datasets, and zhyblue424/TGA-ZSR c955023,
replace/datasets and utils.py. The default template is "This is a photo of a {}" without a full stop. TeCoA's code
lacks a class list for Caltech101, so the list of TGA-ZSR is used: the raw folder names, with two classes of faces.

Known errors: one prompt of PCAM has a typing error. In StanfordCars, 7 pairs of classes have the same prompt. In
ImageNet, 3 pairs of classes have the same prompt. AGFT has the same errors in StanfordCars and ImageNet.
"""

from robustbench_vlm.datasets.image_folder import imagenet_class_names
from robustbench_vlm.datasets.prompts.agft import EUROSAT_NAMES, TISSUE, caltech256_name, with_maker
from robustbench_vlm.datasets.prompts.base import PromptRow, PromptSource

_THIS = "This is a photo of a {}"
_PHOTO = "A photo of a {}."


def _car(raw: str) -> str:
    return raw[:-5].lower().replace("_", " ").replace("-", " ")


def _aircraft(raw: str) -> str:
    return with_maker(raw).lower().replace("_", " ")


_PCAM = dict(zip(TISSUE, (f"Tthis is a photo of {TISSUE[0]}.", f"This is a photo of {TISSUE[1]}."), strict=True))

TECOA: PromptSource = {
    "caltech101": PromptRow(_THIS),
    "caltech256": PromptRow(_PHOTO, caltech256_name),
    "cifar10": PromptRow(_THIS),
    "cifar100": PromptRow(_THIS),
    "dtd": PromptRow("A surface with a {} texture."),
    "eurosat": PromptRow("A centered satellite photo of {}.", names=EUROSAT_NAMES),
    "fgvc-aircraft": PromptRow("A photo of a {}, a type of aircraft.", _aircraft),
    "flowers102": PromptRow("A photo of a {}, a type of flower."),
    "food101": PromptRow("A photo of {}, a type of food."),
    "imagenet": PromptRow(_THIS, names=imagenet_class_names()),
    "oxford-pets": PromptRow("A photo of a {}, a type of pet."),
    "pcam": PromptRow("{}", listed=tuple(_PCAM.values())),
    "stanford-cars": PromptRow(_PHOTO, _car),
    "stl10": PromptRow(_THIS),
    "sun397": PromptRow(_THIS),
}
TGA: PromptSource = TECOA
