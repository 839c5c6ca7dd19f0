"""The image encoder of a CLIP, which resizes and normalises images in [0, 1] and returns their embeddings."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.models.fast_resnet import FoldedResNet
from robustbench_vlm.models.open_clip import Architecture


class ImageEncoder(nn.Module):
    """Map images of any size, float32 [B, 3, H, W] in [0, 1], to embeddings, [B, D] in the dtype of the network.

    The module resizes images (bicubic) and normalises their pixels. An attack therefore perturbs the original pixels.
    The embeddings are not normalised to unit length.
    """

    mean: Tensor
    """The mean that is subtracted from pixels, float32 [1, 3, 1, 1]."""
    std: Tensor
    """The standard deviation that pixels are divided by, float32 [1, 3, 1, 1]."""

    def __init__(self, visual: nn.Module, architecture: Architecture) -> None:
        super().__init__()
        # Convolutions are up to twice as fast in the memory format channels_last, on CPUs and GPUs.
        self.visual = visual.to(memory_format=torch.channels_last)
        self.architecture, self.image_size = architecture, architecture.image_size
        self.register_buffer("mean", torch.tensor(architecture.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(architecture.std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings, [B, D], of images, float32 [B, 3, H, W] in [0, 1]."""
        output = self.visual(self._pixels(images))
        # CoCa's image encoder returns embeddings together with tokens for its text decoder.
        features: Tensor = output[0] if isinstance(output, tuple) else output
        return features

    def dense(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings of images, [B, D], and the embeddings of their T patches, [B, T, D].

        The embeddings of images and of patches are in the same space. `images` is float32 [B, 3, H, W] in [0, 1].
        Raises UserError if the network does not have patch embeddings.
        """
        from open_clip.transformer import VisionTransformer

        if isinstance(self.visual, FoldedResNet):
            return self.visual.dense(self._pixels(images))
        if not isinstance(self.visual, VisionTransformer) or self.visual.final_ln_after_pool:
            raise UserError(
                f"the image encoder is a {type(self.visual).__name__}, which has no patch embeddings, but this function"
                " needs them: choose a model with a vision transformer"
            )
        before, self.visual.output_tokens = self.visual.output_tokens, True
        try:
            features, patches = self.visual(self._pixels(images))
        finally:
            self.visual.output_tokens = before
        return features, patches @ self.visual.proj

    def _pixels(self, images: Tensor) -> Tensor:
        size = (self.image_size, self.image_size)
        if images.shape[-2:] != size:
            images = functional.interpolate(images, size, mode="bicubic", align_corners=False)
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
