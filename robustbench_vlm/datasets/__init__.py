"""Data sets: named pictures with class names and prompts."""

from robustbench_vlm.registry import Registry

_RENDERED = "robustbench_vlm.datasets.rendered"

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
        "handwritten": "robustbench_vlm.datasets.digits:HANDWRITTEN",
        "scenes": f"{_RENDERED}:SCENES",
    },
)
