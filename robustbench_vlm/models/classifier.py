"""Zero-shot classifiers: load a CLIP model and classify images with one or several prompts per class."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_vlm.models.card import ModelCard, find_card
from robustbench_vlm.models.fast_conv import with_fast_pixel_gradients
from robustbench_vlm.models.fast_resnet import folded
from robustbench_vlm.models.image_encoder import ImageEncoder
from robustbench_vlm.models.loading import assemble
from robustbench_vlm.models.open_clip import Architecture, context_length
from robustbench_vlm.models.precision import InPrecision, products
from robustbench_vlm.models.text_encoder import embed_texts

_ROWS = 4
"""Each batch for the image encoder is padded to a multiple of this number of images. Smaller batches would use other
kernels, which add numbers in a different order and round differently. The result of a sample could then depend on the
batch size.
"""


class ZeroShotClassifier(nn.Module):
    """Map images, float32 [B, 3, H, W] in [0, 1], to logits, float32 [B, C].

    A logit is the logit scale times the cosine similarity of an image embedding and the text embedding of a class.
    """

    text_features: Tensor
    """The text embedding of each class, float32 [C, D], of unit length."""
    images_per_sample = 1
    """The number of images per sample in one forward pass of the network."""

    def __init__(
        self,
        encoder: nn.Module,
        text_features: Tensor,
        scale: float,
        logits: str = "float32",
        bias: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder, self.scale, self.bias = encoder, scale, bias
        self.logits = logits
        self.register_buffer("text_features", text_features)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, float32 [B, C], of images, float32 [B, 3, H, W] in [0, 1]."""
        features = self.image_features(images)
        if self.logits == "float32":
            # The rounding errors of a float32 matrix product depend on the number of classes. A product that is
            # computed in float64 and then rounded to float32 does not depend on this number.
            product = self.scale * features.double() @ self.text_features.double().T
            return (product + self.bias).to(self.text_features.dtype)
        # The protocol requires logits in half precision, as in some published code.
        with products(self.logits, images.device.type):
            found = self.scale * features @ self.text_features.T + self.bias
        return found.to(self.text_features.dtype)

    @property
    def plain(self) -> "ZeroShotClassifier":
        """The classifier without its test-time defense. This is `self`, because this class has no test-time defense."""
        return self

    def in_precision(self, name: str, logits: str = "float32") -> "ZeroShotClassifier":
        """Return a copy that computes embeddings in the precision `name` and logits in the precision `logits`.

        `precision.PRECISIONS` lists the accepted names.
        """
        encoder = InPrecision(self.encoder, name)
        return ZeroShotClassifier(encoder, self.text_features, self.scale, logits, self.bias).eval()

    def of_samples(self, keys: Tensor) -> "ZeroShotClassifier":
        """Return this classifier unchanged, because this classifier uses no random numbers.

        `keys` is int64 [B]: the seeds of the random numbers of B samples.
        """
        return self

    def select(self, index: Tensor) -> "ZeroShotClassifier":
        """Return this classifier unchanged, because its function is the same for all samples.

        `index` is int64 [K]: the positions of the samples.
        """
        return self

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        """Return the cost per sample as (forward passes, backward passes): (1, 1) with a gradient, or (1, 0)."""
        return 1, int(gradient)

    def image_features(self, images: Tensor) -> Tensor:
        """Return the embeddings, float32 [B, D], of unit length, of images, float32 [B, 3, H, W] in [0, 1]."""
        features = self.encoder(_filled(images))[: len(images)]
        # The image encoder may run in half precision. The logits are always computed from float32 embeddings.
        return functional.normalize(features.to(self.text_features.dtype), dim=-1)


@dataclass(frozen=True)
class Model:
    """A loaded model, whose network is frozen and in eval mode."""

    name: str
    digest: str
    """sha256 over the architecture, the weights, and the mean and std of the normalisation."""
    network: nn.Module
    architecture: Architecture
    card: ModelCard | None = None
    """The model card. None if the model was made without a card."""

    @property
    def scale(self) -> float:
        """The factor that multiplies the cosine similarities. The weights contain its logarithm."""
        return float(self.network.get_parameter("logit_scale").detach().exp())

    @property
    def bias(self) -> float:
        """The logit bias of models such as SigLIP, which changes no prediction. 0 for models without a logit bias."""
        bias: Tensor | None = getattr(self.network, "logit_bias", None)
        return 0.0 if bias is None else float(bias.detach())

    @property
    def image_size(self) -> int:
        """Height and width of the image encoder's input, in pixels."""
        return self.architecture.image_size

    @property
    def context_length(self) -> int:
        """The largest number of tokens that the text encoder reads, including the start and end tokens."""
        return context_length(self.architecture)

    def to(self, device: str) -> None:
        """Move the network to a device."""
        self.network.to(device)

    @functools.cached_property
    def encoder(self) -> ImageEncoder:
        """The image encoder, including resize and normalisation. All classifiers of the model share this encoder."""
        with torch.no_grad():
            visual = with_fast_pixel_gradients(folded(self.network.get_submodule("visual")))
        return ImageEncoder(visual, self.architecture).eval()

    def text_features(self, prompts: Sequence[str | tuple[str, ...]]) -> Tensor:
        """Return the text embedding of each class, float32 [C, D], of unit length.

        `prompts` has one text or a tuple of texts per class. The embedding of a class is the normalised mean of the
        embeddings of its texts.
        """
        return class_features(prompts, functools.partial(embed_texts, self.network, self.architecture))

    def classifier(self, prompts: Sequence[str | tuple[str, ...]]) -> ZeroShotClassifier:
        """Return the zero-shot classifier for C classes. `prompts` has one text or a tuple of texts per class."""
        made = ZeroShotClassifier(self.encoder, self.text_features(prompts), self.scale, bias=self.bias)
        return made.eval().requires_grad_(False)


def class_features(prompts: Sequence[str | tuple[str, ...]], embed: Callable[[list[str]], Tensor]) -> Tensor:
    """Return the text embedding of each class, float32 [C, D], with unit length.

    If a class has several prompts, their embeddings are averaged. `embed` is a function from N different texts to
    unit-length embeddings, float32 [N, D]. `embed` is called once.
    """
    groups = [(prompt,) if isinstance(prompt, str) else prompt for prompt in prompts]
    texts = list(dict.fromkeys(text for group in groups for text in group))
    embedded = dict(zip(texts, embed(texts), strict=True))
    means = torch.stack([torch.stack([embedded[text] for text in group]).mean(dim=0) for group in groups])
    return means if all(len(group) == 1 for group in groups) else functional.normalize(means, dim=-1)


def _filled(images: Tensor) -> Tensor:
    """Repeat the last image of a batch, [B, 3, H, W], until the batch size is a multiple of `_ROWS`."""
    more = -len(images) % _ROWS
    return torch.cat([images, images[-1:].detach().expand(more, -1, -1, -1)]) if more else images


def load_model(reference: str, track: str) -> Model:
    """Load a model by its reference, which must not have a test-time defense.

    The module `models.reference` lists the forms of references. Raises UserError if the name is unknown, a download
    fails, or the weights are damaged, have a wrong digest, or were never released.
    """
    card = find_card(reference, track)
    found = assemble(card, track)
    return Model(card.name, found.digest, found.network.eval().requires_grad_(False), found.architecture, card)
