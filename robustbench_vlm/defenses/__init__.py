"""Defenses: training recipes, one file each."""

from robustbench_vlm.registry import Registry

DEFENSES = Registry(
    "defense",
    {
        "tecoa": "robustbench_vlm.defenses.tecoa:TECOA",
        "agft": "robustbench_vlm.defenses.agft:AGFT",
    },
)
