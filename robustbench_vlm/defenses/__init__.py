"""Registry of the defenses. A defense is a recipe of adversarial training.

Some defenses have a second recipe, NAME@code. NAME differs from the released code in some details. NAME@code follows
the released code in these details too.
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
