"""AGFT's class names and prompt templates, including their errors.

Source: YuboCui/AGFT 0031a8f, clip_dataset.py and imagenet_classes_names.txt.

Known errors: the model year is removed from the class names of StanfordCars, so 7 pairs of classes have the same
prompt. In ImageNet, "cardigan", "crane" and "maillot" are the names of two classes each. Two class names of Flowers102
end with a space.
"""

from robustbench_vlm.datasets.image_folder import imagenet_class_names
from robustbench_vlm.datasets.prompts.base import PromptRow, PromptSource, plain_words, read_facts

_PHOTO, _THIS = "A photo of a {}.", "This is a photo of a {}."
EUROSAT_NAMES = {
    "AnnualCrop": "annual crop land",
    "Forest": "a forest",
    "HerbaceousVegetation": "brushland or shrubland",
    "Highway": "a highway or a road",
    "Industrial": "industrial buildings",
    "Pasture": "pasture land",
    "PermanentCrop": "permanent crop land",
    "Residential": "residential buildings",
    "River": "a river",
    "SeaLake": "a sea or a lake",
}
TISSUE = ("healthy lymph node tissue", "lymph node tumor tissue")
FACES = ("Faces", "Faces_easy")


def stripped(raw: str) -> str:
    """Return a raw class name as plain words (see `plain_words`), without spaces at the ends."""
    return plain_words(raw).strip()


def without_year(raw: str) -> str:
    """Return a car's name without the model year (its last five characters), with spaces for hyphens."""
    return raw[:-5].replace("-", " ")


def with_maker(raw: str) -> str:
    """Return an aircraft's name, with "Boeing" in front if the name begins with 7."""
    return f"Boeing {raw}" if raw.startswith("7") else raw


def caltech256_name(raw: str) -> str:
    """Return a class name of Caltech256 without its number and without the suffix "-101", which some names have."""
    return stripped(raw.partition(".")[2].replace("-101", ""))


AGFT: PromptSource = {
    "caltech101": PromptRow(_PHOTO, stripped, dict.fromkeys(FACES, "person"), one_class=FACES),
    "caltech256": PromptRow(_PHOTO, caltech256_name),
    "cifar10": PromptRow(_THIS, stripped),
    "cifar100": PromptRow(_THIS, stripped),
    "dtd": PromptRow("A surface with a {} texture.", stripped),
    "eurosat": PromptRow("A centered satellite photo of {}.", names=EUROSAT_NAMES),
    "fgvc-aircraft": PromptRow("A photo of a {}, a type of aircraft.", with_maker),
    "flowers102": PromptRow("A photo of a {}, a type of flower.", listed=tuple(read_facts("agft")["flowers102"])),
    "food101": PromptRow("A photo of {}, a type of food.", stripped),
    "imagenet": PromptRow(_THIS, names=imagenet_class_names()),
    "oxford-pets": PromptRow("A photo of a {}, a type of pet.", stripped),
    "pcam": PromptRow("This is a photo of {}.", listed=TISSUE),
    "stanford-cars": PromptRow(_PHOTO, without_year),
    "stl10": PromptRow(_THIS, lambda raw: raw),
    "sun397": PromptRow(_THIS, stripped),
}
