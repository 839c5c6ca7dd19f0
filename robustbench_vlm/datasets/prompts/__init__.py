"""The table of wordings, named like the code or the choices that they follow."""

from robustbench_vlm.core.registry import Registry

_HERE = "robustbench_vlm.datasets.prompts"

WORDINGS = Registry(
    "wording",
    {
        "trusted": f"{_HERE}.trusted:TRUSTED",
        "agft": f"{_HERE}.agft:AGFT",
        "tecoa": f"{_HERE}.tecoa:TECOA",
        "tga": f"{_HERE}.tecoa:TGA",
        "fare": f"{_HERE}.fare:FARE",
    },
)
