"""Zero-shot classifiers: load a CLIP model and classify images by the prompts of the classes."""

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
"""The image encoder gets batches whose size is a multiple of this number. Kernels for smaller batches add numbers in
another order and round differently, so the result of a sample could depend on the batch size."""


class ZeroShotClassifier(nn.Module):
    """Map images, float32 [B, 3, H, W] in [0, 1], to logits, float32 [B, C].

    A logit is the logit scale times the cosine similarity of an image embedding and the text embedding of a class.
    """

    text_features: Tensor
    """The text embedding of each class, float32 [C, D], of unit length."""
    images_per_sample = 1
    """The number of images that the network processes for one sample at the same time."""

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
            # A float32 product rounds differently for another number of classes. A float64 product that is then rounded
            # to float32 does not.
            product = self.scale * features.double() @ self.text_features.double().T
            return (product + self.bias).to(self.text_features.dtype)
        # The protocol requires logits in a lower precision.
        with products(self.logits, images.device.type):
            found = self.scale * features @ self.text_features.T + self.bias
        return found.to(self.text_features.dtype)

    @property
    def plain(self) -> "ZeroShotClassifier":
        """This classifier itself, because it has no test-time defense that could be removed."""
        return self

    def in_precision(self, name: str, logits: str = "float32") -> "ZeroShotClassifier":
        """Return this classifier with the image encoder in the precision `name` and the logits in `logits`.

        Both are names in `precision.PRECISIONS`.
        """
        encoder = InPrecision(self.encoder, name)
        return ZeroShotClassifier(encoder, self.text_features, self.scale, logits, self.bias).eval()

    def of_samples(self, keys: Tensor) -> "ZeroShotClassifier":
        """Return this classifier unchanged, because it uses no random numbers; `keys` is int64 [B]."""
        return self

    def select(self, index: Tensor) -> "ZeroShotClassifier":
        """Return this classifier unchanged, because it is the same function for all samples; `index` is int64 [K]."""
        return self

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        """Return one forward pass, and one backward pass if `gradient` is true."""
        return 1, int(gradient)

    def image_features(self, images: Tensor) -> Tensor:
        """Return the embeddings, float32 [B, D], of unit length, of images, float32 [B, 3, H, W] in [0, 1]."""
        features = self.encoder(_filled(images))[: len(images)]
        # The encoder may run in half precision, but the logits are computed from float32 embeddings.
        return functional.normalize(features.to(self.text_features.dtype), dim=-1)


@dataclass(frozen=True)
class Model:
    """A loaded model, whose network is frozen and in eval mode."""

    name: str
    digest: str
    """sha256 over the architecture, the weights, and the mean and std of the model."""
    network: nn.Module
    architecture: Architecture
    card: ModelCard | None = None
    """The model card; None for a model that was made without one."""

    @property
    def scale(self) -> float:
        """The logit scale, which multiplies cosine similarities; the weights store its logarithm."""
        return float(self.network.get_parameter("logit_scale").detach().exp())

    @property
    def bias(self) -> float:
        """The logit bias of a sigmoid head, such as SigLIP's; 0 without one. It changes no prediction."""
        bias: Tensor | None = getattr(self.network, "logit_bias", None)
        return 0.0 if bias is None else float(bias.detach())

    @property
    def image_size(self) -> int:
        """Height and width of the image encoder's input, in pixels."""
        return self.architecture.image_size

    @property
    def context_length(self) -> int:
        """The number of tokens that the text encoder reads, start and end tokens included."""
        return context_length(self.architecture)

    def to(self, device: str) -> None:
        """Move the network to a device."""
        self.network.to(device)

    @functools.cached_property
    def encoder(self) -> ImageEncoder:
        """The image encoder, which resizes and normalises images itself; all classifiers of the model share it."""
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
        """Return the zero-shot classifier of C classes; `prompts` has one text or a tuple of texts per class."""
        made = ZeroShotClassifier(self.encoder, self.text_features(prompts), self.scale, bias=self.bias)
        return made.eval().requires_grad_(False)


def class_features(prompts: Sequence[str | tuple[str, ...]], embed: Callable[[list[str]], Tensor]) -> Tensor:
    """Return the text embedding of each class, float32 [C, D], unit length; several prompts of a class are averaged.

    `embed` maps N different texts to unit-length embeddings, float32 [N, D]. It is called once.
    """
    groups = [(prompt,) if isinstance(prompt, str) else prompt for prompt in prompts]
    texts = list(dict.fromkeys(text for group in groups for text in group))
    embedded = dict(zip(texts, embed(texts), strict=True))
    means = torch.stack([torch.stack([embedded[text] for text in group]).mean(dim=0) for group in groups])
    return means if all(len(group) == 1 for group in groups) else functional.normalize(means, dim=-1)


def _filled(images: Tensor) -> Tensor:
    """Return images, [B, 3, H, W], with the last image repeated until the batch size is a multiple of _ROWS."""
    more = -len(images) % _ROWS
    return torch.cat([images, images[-1:].detach().expand(more, -1, -1, -1)]) if more else images


def load_model(reference: str, track: str) -> Model:
    """Load the model of a reference without a test-time defense; `models.reference` lists the forms of references.

    Raises UserError if the name is unknown, a download fails, or the weights are damaged, have a wrong digest, or were
    never released.
    """
    card = find_card(reference, track)
    found = assemble(card, track)
    return Model(card.name, found.digest, found.network.eval().requires_grad_(False), found.architecture, card)
