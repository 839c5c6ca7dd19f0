"""Datasets: named images with class names and prompts."""

from robustbench_vlm.core.registry import Registry

_RENDERED = "robustbench_vlm.datasets.rendered"
_PUBLISHED = "robustbench_vlm.datasets.published.local_copy"

DATASETS = Registry(
    "dataset",
    {
        "shapes": f"{_RENDERED}:SHAPES",
        "colours": f"{_RENDERED}:COLOURS",
        "textures": f"{_RENDERED}:TEXTURES",
        "backgrounds": f"{_RENDERED}:BACKGROUNDS",
        "positions": f"{_RENDERED}:POSITIONS",
        "counting": f"{_RENDERED}:COUNTING",
        "fine-grained": f"{_RENDERED}:FINE_GRAINED",
        "relations": f"{_RENDERED}:RELATIONS",
        "digits": f"{_RENDERED}:DIGITS",
        "day-night": f"{_RENDERED}:DAY_NIGHT",
        "outlines": f"{_RENDERED}:OUTLINES",
        "low-contrast": f"{_RENDERED}:LOW_CONTRAST",
        "handwritten": "robustbench_vlm.datasets.handwritten:HANDWRITTEN",
        "scenes": f"{_RENDERED}:SCENES",
        "caltech101": f"{_PUBLISHED}:CALTECH101",
        "caltech256": f"{_PUBLISHED}:CALTECH256",
        "cifar10": f"{_PUBLISHED}:CIFAR10",
        "cifar100": f"{_PUBLISHED}:CIFAR100",
        "dtd": f"{_PUBLISHED}:DTD",
        "eurosat": f"{_PUBLISHED}:EUROSAT",
        "fgvc-aircraft": f"{_PUBLISHED}:FGVC_AIRCRAFT",
        "flowers102": f"{_PUBLISHED}:FLOWERS102",
        "food101": f"{_PUBLISHED}:FOOD101",
        "imagenet": f"{_PUBLISHED}:IMAGENET",
        "oxford-pets": f"{_PUBLISHED}:OXFORD_PETS",
        "pcam": f"{_PUBLISHED}:PCAM",
        "stanford-cars": f"{_PUBLISHED}:STANFORD_CARS",
        "stl10": f"{_PUBLISHED}:STL10",
        "sun397": f"{_PUBLISHED}:SUN397",
        "tiny-imagenet": f"{_PUBLISHED}:TINY_IMAGENET",
        "country211": f"{_PUBLISHED}:COUNTRY211",
        "imagenet-r": f"{_PUBLISHED}:IMAGENET_R",
        "imagenet-sketch": f"{_PUBLISHED}:IMAGENET_SKETCH",
        "hateful-memes": f"{_PUBLISHED}:HATEFUL_MEMES",
    },
)
