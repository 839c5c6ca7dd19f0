"""Devices: choose "cpu" or "cuda"; torch is imported only when a GPU is looked for."""

from robustbench_vlm.core.errors import UserError


def check_device(name: str) -> None:
    """Raise UserError for a name that is neither "cpu" nor "cuda" nor empty."""
    if name not in ("", "cpu", "cuda"):
        raise UserError(f"unknown device {name!r}: expected cpu or cuda")


def choose_device(name: str) -> str:
    """Return "cpu" or "cuda"; "" chooses a GPU if there is one. Raise UserError for an unknown or missing device."""
    import torch

    check_device(name)
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("torch finds no GPU that it can use: give --device cpu, or fix the driver")
    return name or ("cuda" if torch.cuda.is_available() else "cpu")
