"""The registry of datasets: a mapping from the name of a dataset to its module and variable."""

from robustbench_vlm.core.registry import Registry

_MINI = "robustbench_vlm.datasets.mini"
_PUBLISHED = "robustbench_vlm.datasets.published.zero_shot"

DATASETS = Registry(
    "dataset",
    {
        "shapes": f"{_MINI}:SHAPES",
        "colours": f"{_MINI}:COLOURS",
        "textures": f"{_MINI}:TEXTURES",
        "backgrounds": f"{_MINI}:BACKGROUNDS",
        "positions": f"{_MINI}:POSITIONS",
        "counting": f"{_MINI}:COUNTING",
        "fine-grained": f"{_MINI}:FINE_GRAINED",
        "relations": f"{_MINI}:RELATIONS",
        "digits": f"{_MINI}:DIGITS",
        "day-night": f"{_MINI}:DAY_NIGHT",
        "outlines": f"{_MINI}:OUTLINES",
        "low-contrast": f"{_MINI}:LOW_CONTRAST",
        "handwritten": f"{_MINI}:HANDWRITTEN",
        "scenes": f"{_MINI}:SCENES",
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
