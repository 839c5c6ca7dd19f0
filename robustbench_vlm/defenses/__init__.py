"""Registry of the defenses. A defense is a recipe of adversarial training.

The recipe NAME@code follows the released code of NAME also in its details.
"""

from robustbench_vlm.core.registry import Registry

DEFENSES = Registry(
    "defense",
    {
        "tecoa": "robustbench_vlm.defenses.tecoa:TECOA",
        "tecoa@code": "robustbench_vlm.defenses.tecoa:TECOA_CODE",
        "tecoa-fare": "robustbench_vlm.defenses.tecoa:TECOA_FARE",
        "tecoa-fare@code": "robustbench_vlm.defenses.tecoa:TECOA_FARE_CODE",
        "pmg-aft": "robustbench_vlm.defenses.pmg_aft:PMG_AFT",
        "pmg-aft@code": "robustbench_vlm.defenses.pmg_aft:PMG_AFT_CODE",
        "tga-zsr": "robustbench_vlm.defenses.tga_zsr:TGA_ZSR",
        "tga-zsr@code": "robustbench_vlm.defenses.tga_zsr:TGA_ZSR_CODE",
        "fare": "robustbench_vlm.defenses.fare:FARE",
        "fare@code": "robustbench_vlm.defenses.fare:FARE_CODE",
        "sim-clip": "robustbench_vlm.defenses.sim_clip:SIM_CLIP",
        "sim-clip@code": "robustbench_vlm.defenses.sim_clip:SIM_CLIP_CODE",
        "gladiator": "robustbench_vlm.defenses.gladiator:GLADIATOR",
        "agft": "robustbench_vlm.defenses.agft:AGFT",
        "agft@code": "robustbench_vlm.defenses.agft:AGFT_CODE",
    },
)
