"""Procedures: test-time defenses, one file each; `NAME+MODEL` is the model that a procedure makes of another one."""

from robustbench_vlm.registry import Registry

PROCEDURES = Registry(
    "procedure",
    {
        "ttc": "robustbench_vlm.procedures.ttc:TTC",
        "r-tpt": "robustbench_vlm.procedures.r_tpt:R_TPT",
        "r-tpt@16": "robustbench_vlm.procedures.r_tpt:R_TPT_16",
        "clipure-cos": "robustbench_vlm.procedures.clipure:CLIPURE_COS",
        "clipure-cos@short": "robustbench_vlm.procedures.clipure:CLIPURE_COS_SHORT",
    },
)
