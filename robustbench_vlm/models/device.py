"""Check or choose a device, "cpu" or "cuda". This module imports torch only if it has to look for a GPU."""

from robustbench_vlm.core.errors import UserError


def check_device(name: str) -> None:
    """Raise UserError if a name is not "cpu", "cuda" or empty."""
    if name not in ("", "cpu", "cuda"):
        raise UserError(f"unknown device {name!r}: give cpu or cuda")


def choose_device(name: str) -> str:
    """Return the device `name`. If `name` is "", return "cuda" if there is a GPU, and "cpu" if not.

    Raises UserError if the name is unknown, or if it is "cuda" and torch finds no GPU.
    """
    import torch

    check_device(name)
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("the device is cuda, but torch finds no usable GPU: give --device cpu, or check the GPU driver")
    return name or ("cuda" if torch.cuda.is_available() else "cpu")
