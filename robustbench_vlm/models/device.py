"""Devices."""

import torch

from robustbench_vlm.core.errors import UserError


def check_device(name: str) -> None:
    """Raise UserError for a name that is neither "cpu" nor "cuda" nor empty."""
    if name not in ("", "cpu", "cuda"):
        raise UserError(f"unknown device {name!r}: it is cpu or cuda")


def choose_device(name: str) -> str:
    """Return "cpu" or "cuda", for "" a GPU where there is one; raise UserError for another or one that is not there."""
    check_device(name)
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no GPU that torch can use: take --device cpu, or mend the driver")
    return name or ("cuda" if torch.cuda.is_available() else "cpu")
