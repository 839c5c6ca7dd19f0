"""The registry of protocols: a mapping from names to modules and variables. This module does not import torch."""

from robustbench_vlm.core.registry import Registry

IMAGE_PROTOCOL = "images"
"""Name of the protocol for a folder of images (--images), if neither a track nor a protocol is given."""
_EMBEDDED, _REAL = "robustbench_vlm.protocols.mini", "robustbench_vlm.protocols.zeroshot15"

PROTOCOLS = Registry(
    "protocol",
    {
        "mini": f"{_EMBEDDED}:MINI",
        "mini-quick": f"{_EMBEDDED}:MINI_QUICK",
        "images": "robustbench_vlm.protocols.images:IMAGES",
        "trusted": f"{_REAL}:TRUSTED",
        "trusted-native": f"{_REAL}:TRUSTED_NATIVE",
        "agft-2026": f"{_REAL}:AGFT_2026",
        "fare-2024": f"{_REAL}:FARE_2024",
        "tecoa-2023": f"{_REAL}:TECOA_2023",
        "tga-2024": f"{_REAL}:TGA_2024",
    },
)
