"""Architectures: the shape of a CLIP, built by open_clip, with how it wants its pixels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.registry import unknown
from robustbench_vlm.models import ARCHITECTURES
from robustbench_vlm.models.reference import OPEN_CLIP


@dataclass(frozen=True)
class Architecture:
    """The arguments of open_clip's CLIP; `mean` and `std` normalise pixels in [0, 1] inside the classifier."""

    config: Mapping[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def image_size(self) -> int:
        """Height and width of the images that the image tower takes, in pixels."""
        return int(self.config["vision_cfg"]["image_size"])

    def build(self) -> nn.Module:
        """Return the network at random initialisation."""
        import open_clip

        arguments = {key: dict(value) if isinstance(value, Mapping) else value for key, value in self.config.items()}
        network: nn.Module = open_clip.CLIP(**arguments)
        return network


def load_architecture(name: str) -> Architecture:
    """Return a registered architecture, or open_clip's own by "open_clip:NAME"; raise UserError for an unknown one."""
    if not name.startswith(OPEN_CLIP):
        architecture: Architecture = ARCHITECTURES.load(name)
        return architecture
    import open_clip

    short = name.removeprefix(OPEN_CLIP)
    config = open_clip.get_model_config(short)
    if config is None:
        raise UserError(unknown("open_clip architecture", short, open_clip.list_models()))
    if own := [key for key in ("hf_tokenizer_name", "hf_model_name", "tokenizer_kwargs") if key in config["text_cfg"]]:
        raise UserError(
            f"{name} reads its texts with a tokenizer of its own ({own[0]}), and this package has CLIP's alone: take an"
            " architecture whose tokenizer is CLIP's"
        )
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    return Architecture(config, tuple(mean), tuple(std))
