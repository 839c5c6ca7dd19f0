"""The registry of prompt sources. A prompt source has the class names and prompt templates of one project."""

from robustbench_vlm.core.registry import Registry

_HERE = "robustbench_vlm.datasets.prompts"

PROMPT_SOURCES = Registry(
    "prompt_source",
    {
        "trusted": f"{_HERE}.trusted:TRUSTED",
        "agft": f"{_HERE}.agft:AGFT",
        "tecoa": f"{_HERE}.tecoa:TECOA",
        "tga": f"{_HERE}.tecoa:TGA",
        "fare": f"{_HERE}.fare:FARE",
    },
)
