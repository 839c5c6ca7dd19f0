"""Transforms: convert a Pillow image of any mode and size to the pixels that are attacked."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Transform:
    """Convert an image to 8-bit RGB, resize it and crop its centre, as torchvision does. None skips a step."""

    resize: int | None = None
    """Length of the shorter side in pixels, or of both sides with `squash`."""
    crop: int | None = None
    """Side of the centre crop in pixels."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    squash: bool = False
    """Resize both sides to `resize`, which changes the aspect ratio."""

    def __str__(self) -> str:
        if self.resize is None:
            return "pixels as stored"
        how = f"both sides to {self.resize}" if self.squash else f"shorter side to {self.resize}"
        return f"{how}, {self.interpolation}" + (f", centre crop of {self.crop}" if self.crop else "")

    def __call__(self, image: "Image.Image") -> Tensor:
        """Return the image's pixels as uint8 [3, H, W]."""
        import numpy
        from torchvision.transforms import InterpolationMode, functional

        image = to_rgb(image)
        if self.resize is not None:
            size = [self.resize, self.resize] if self.squash else [self.resize]
            image = functional.resize(image, size, InterpolationMode(self.interpolation))
        if self.crop is not None:
            image = functional.center_crop(image, [self.crop, self.crop])
        return torch.from_numpy(numpy.array(image)).permute(2, 0, 1).contiguous()


def to_rgb(image: "Image.Image") -> "Image.Image":
    """Return an image as 8-bit RGB, converted by Pillow.

    16-bit images keep their upper 8 bits; Pillow would clip them at 255. The rotation in the EXIF data is ignored, as
    in published evaluations.
    """
    if image.mode.startswith("I"):
        import numpy
        from PIL import Image

        image = Image.fromarray((numpy.asarray(image).astype("uint32") >> 8).clip(0, 255).astype("uint8"))
    return image.convert("RGB")


NATIVE = Transform()
"""Keeps the stored size: neither resizes nor crops."""
