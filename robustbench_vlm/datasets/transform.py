"""Transforms: convert a Pillow image of any mode and size to the pixels that are attacked."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

_ORIENTATION, _BITS_PER_SAMPLE, _PHOTOMETRIC = 0x0112, 258, 262
"""Numbers of the EXIF and TIFF tags for the rotation, the bits per sample, and the meaning of the pixel values."""
_WHITE_IS_ZERO = 0
"""Value of the TIFF tag `_PHOTOMETRIC` for images in which the pixel value 0 is white."""


@dataclass(frozen=True)
class Transform:
    """Convert an image to 8-bit RGB, resize it and crop its centre. Sizes are rounded as in torchvision.

    If `resize` or `crop` is None, this step is omitted.
    """

    resize: int | None = None
    """Length of the shorter side after the resize, in pixels. If `squash` is true, both sides have this length."""
    crop: int | None = None
    """Side of the centre crop in pixels."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    squash: bool = False
    """If true, both sides are resized to `resize` pixels. This changes the aspect ratio."""

    def __str__(self) -> str:
        if self.resize is None:
            return "pixels as stored"
        how = f"both sides to {self.resize}" if self.squash else f"shorter side to {self.resize}"
        return f"{how}, {self.interpolation}" + (f", centre crop of {self.crop}" if self.crop else "")

    def to_side(self, side: int) -> "Transform":
        """Return this transform for outputs of `side` x `side` pixels.

        If the transform crops, `resize` is multiplied by the same factor as `crop`. Two kinds of transforms are
        returned unchanged: those that do not resize, and those that resize only the shorter side and do not crop.
        """
        if self.resize is None or (self.crop is None and not self.squash):
            return self
        resize = side if self.crop is None else round(self.resize * side / self.crop)
        return dataclasses.replace(self, resize=resize, crop=self.crop and side)

    def __call__(self, image: "Image.Image") -> "Tensor":
        """Return the image's pixels as uint8 [3, H, W]."""
        import numpy
        import torch
        from torchvision.transforms import InterpolationMode, functional

        image = to_rgb(image)
        if self.resize is not None:
            size = [self.resize, self.resize] if self.squash else [self.resize]
            image = functional.resize(image, size, InterpolationMode(self.interpolation))
        if self.crop is not None:
            image = functional.center_crop(image, [self.crop, self.crop])
        return torch.from_numpy(numpy.array(image)).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class SquareFit:
    """Convert an image to RGB with `as_displayed`, resize it (bicubic) and crop its centre to a square.

    Raises ValueError if the image does not define which pixel values are black and white.
    """

    side: int
    """Height and width of the result in pixels."""

    def __call__(self, image: "Image.Image") -> "Tensor":
        """Return the image's pixels as uint8 [3, side, side]."""
        import numpy
        import torch
        from PIL import Image, ImageOps

        square = ImageOps.fit(as_displayed(image), (self.side, self.side), Image.Resampling.BICUBIC)
        return torch.from_numpy(numpy.array(square)).permute(2, 0, 1).contiguous()


def to_rgb(image: "Image.Image") -> "Image.Image":
    """Return an image as 8-bit RGB, converted by Pillow.

    16-bit and float images are scaled to 8 bits, because Pillow would clip their pixels at 255. Transparency and the
    rotation in the EXIF data are ignored, as in published evaluations. Raises ValueError if the image does not define
    which pixel values are black and white.
    """
    return (_deep_grey(image) if _is_deep(image) else image).convert("RGB")


def as_displayed(image: "Image.Image") -> "Image.Image":
    """Return an image as 8-bit RGB, in the way that an image viewer shows it.

    The rotation in the EXIF data is applied, and transparent pixels are white. Raises ValueError if the image does not
    define which pixel values are black and white.
    """
    from PIL import Image

    image.load()
    turn = _orientation(image)
    if _is_deep(image):
        image = _deep_grey(image)
    elif image.mode == "LAB":
        image = _lab_to_rgb(image)
    elif image.mode in ("RGBa", "La"):
        image = image.convert(image.mode.upper())
    if image.has_transparency_data or image.mode in ("RGBA", "LA", "PA"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def _orientation(image: "Image.Image") -> "Image.Transpose | None":
    """Return the operation that the EXIF data of an image state, which rotates or flips the image to its upright form.

    Return None if the image is upright or its EXIF data do not contain a rotation.
    """
    from PIL import Image

    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    # Damaged EXIF data may raise many types of exceptions in Pillow, but the pixels can still be read.
    try:
        return turns.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return None


def _is_deep(image: "Image.Image") -> bool:
    """Return whether an image is grey with more than 8 bits per pixel."""
    return image.mode == "F" or image.mode.startswith("I")


def _deep_grey(image: "Image.Image") -> "Image.Image":
    """Convert a grey image with 16-bit or float pixels to 8-bit grey.

    Raises ValueError if the image does not define which pixel value is white.
    """
    import numpy
    from PIL import Image

    values = numpy.asarray(image)
    if image.mode == "F":
        # All comparisons with NaN are False. Because of the `not`, an image with NaN also raises an error.
        if not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(
                f"its float pixels are from {values.min()} to {values.max()}, expected 0 to 1: convert the image"
                " to 8 bits"
            )
        return Image.fromarray((values.astype("float64") * 255).round().astype("uint8"))
    bits, is_inverted = _grey_format(image)
    values = values.astype("int64")
    if bits > 16 or values.min() < 0 or values.max() >= 2**bits:
        raise ValueError(
            f"its pixels are {bits}-bit integers from {values.min()} to {values.max()}, expected at most 16 bits"
            " without a sign: convert the image to 8 bits"
        )
    grey = Image.fromarray((values >> (bits - 8)).astype("uint8") ^ (255 if is_inverted else 0))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(numpy.where(values == transparent, 0, 255).astype("uint8")))
    return grey


def _grey_format(image: "Image.Image") -> tuple[int, bool]:
    """Return the bits per pixel of a grey integer image, and whether its white pixels have the value 0."""
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        # Pillow converts the pixels of a 16-bit PGM file to 32 bits, so the mode does not show the bit
        # depth of the file.
        return (16 if image.mode.startswith("I;16") or image.format in ("PPM", "PNG") else 32), False
    bits = tags.get(_BITS_PER_SAMPLE, (32,))
    return int(bits[0] if isinstance(bits, tuple) else bits), tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def _lab_to_rgb(image: "Image.Image") -> "Image.Image":
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.applyTransform(image, ImageCms.buildTransform(lab, srgb, "LAB", "RGB"))
    assert converted is not None
    return converted


NATIVE = Transform()
"""A transform that converts an image to RGB and keeps its stored size."""
