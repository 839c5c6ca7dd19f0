"""A test-time defense that averages the logits of an image and its mirror image."""

from torch import Tensor
from torch.nn import functional

from robustbench_vlm.test_time.base import DefenseContext, Passes, TestTimeDefense


def logits(context: DefenseContext, images: Tensor) -> Tensor:
    """Return the mean logits of images and their mirror images, float32 (B, C)."""
    features = [functional.normalize(context.image_encoder(each), dim=-1) for each in (images, images.flip(3))]
    return context.scale * (features[0] + features[1]) / 2 @ context.text_features.T


MIRROR = TestTimeDefense("mirror", logits, passes=lambda settings: Passes(forward=2, outer=2), paper="made up")
