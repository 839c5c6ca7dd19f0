"""Zero-shot classifiers from CLIP models, for the embedded model and all others."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_vlm.models.card import ModelCard, find_card
from robustbench_vlm.models.fast_conv import quick_at_pixels
from robustbench_vlm.models.fast_resnet import folded
from robustbench_vlm.models.image_encoder import ImageEncoder
from robustbench_vlm.models.loading import assemble
from robustbench_vlm.models.open_clip import Architecture
from robustbench_vlm.models.precision import InPrecision, products
from robustbench_vlm.models.text_encoder import embed_texts

_ROWS = 4
"""The image encoder gets a multiple of this many images. Kernels for fewer images round in another order, and the
verdict of a sample could depend on how many samples are attacked together."""


class ZeroShotClassifier(nn.Module):
    """Map images (B, 3, H, W) in [0, 1] to float32 logits (B, C): scale times cosine with each text embedding."""

    text_features: Tensor
    images_per_sample = 1
    """Images that one sample has in memory at once."""

    def __init__(self, encoder: nn.Module, text_features: Tensor, scale: float, logits: str = "float32") -> None:
        super().__init__()
        self.encoder, self.scale = encoder, scale
        self.logits = logits
        self.register_buffer("text_features", text_features)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images."""
        features = self.image_features(images)
        if self.logits == "float32":
            # In float64, rounded once: the rounding of a float32 product depends on the number of classes.
            return (self.scale * features.double() @ self.text_features.double().T).to(self.text_features.dtype)
        # The image encoder and its gradient may run in a lower precision; logits only if the protocol says so.
        with products(self.logits, images.device.type):
            found = self.scale * features @ self.text_features.T
        return found.to(self.text_features.dtype)

    @property
    def plain(self) -> "ZeroShotClassifier":
        """The classifier without a test-time defense: itself."""
        return self

    def in_precision(self, name: str, logits: str = "float32") -> "ZeroShotClassifier":
        """Return the classifier with image encoder and logits in precisions, names of `precision.PRECISIONS`."""
        return ZeroShotClassifier(InPrecision(self.encoder, name), self.text_features, self.scale, logits).eval()

    def of_samples(self, keys: Tensor) -> "ZeroShotClassifier":
        """Return the classifier of the samples with these random streams, (B,): itself, since it draws no numbers."""
        return self

    def select(self, index: Tensor) -> "ZeroShotClassifier":
        """Return the classifier itself, which is the same for all samples."""
        return self

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        """Return one forward pass, and one backward pass if a gradient is asked for."""
        return 1, int(gradient)

    def image_features(self, images: Tensor) -> Tensor:
        """Return the embedding of each image, (B, D), unit length, in the dtype of the text embeddings."""
        features = self.encoder(_filled(images))[: len(images)]
        # Logits decide verdicts: embeddings of a half-precision encoder are converted to float32 first.
        return functional.normalize(features.to(self.text_features.dtype), dim=-1)


@dataclass(frozen=True)
class Model:
    """A loaded model: name, digest of its weights, and the network, frozen and in eval mode."""

    name: str
    digest: str
    """sha256 over architecture and weight digests."""
    network: nn.Module
    architecture: Architecture
    card: ModelCard | None = None

    @property
    def scale(self) -> float:
        """The logit scale of inference."""
        return float(self.network.get_parameter("logit_scale").detach().exp())

    @functools.cached_property
    def encoder(self) -> ImageEncoder:
        """The image encoder with resize and normalisation inside; all classifiers of the model share it."""
        with torch.no_grad():
            tower = quick_at_pixels(folded(self.network.get_submodule("visual")))
        return ImageEncoder(tower, self.architecture).eval()

    def text_features(self, prompts: Sequence[str | tuple[str, ...]]) -> Tensor:
        """Return the text embedding of each class, float32 (C, D), unit length; several prompts are averaged."""
        groups = [(prompt,) if isinstance(prompt, str) else prompt for prompt in prompts]
        texts = list(dict.fromkeys(text for group in groups for text in group))
        embedded = dict(zip(texts, embed_texts(self.network, self.architecture, texts), strict=True))
        means = torch.stack([torch.stack([embedded[text] for text in group]).mean(dim=0) for group in groups])
        return means if all(len(group) == 1 for group in groups) else functional.normalize(means, dim=-1)

    def classifier(self, prompts: Sequence[str | tuple[str, ...]]) -> ZeroShotClassifier:
        """Return the zero-shot classifier of the classes that the prompts describe: one text or several per class."""
        return ZeroShotClassifier(self.encoder, self.text_features(prompts), self.scale).eval().requires_grad_(False)


def _filled(images: Tensor) -> Tensor:
    """Return images repeated at the end, so that their number is a multiple of _ROWS."""
    more = -len(images) % _ROWS
    return torch.cat([images, images[-1:].detach().expand(more, -1, -1, -1)]) if more else images


def load_model(reference: str, track: str) -> Model:
    """Return the model of a reference without a test-time defense, see `models.reference`.

    Raises UserError for unknown names, wrong digests, damaged weights, weights that were never released, and failed
    downloads.
    """
    card = find_card(reference, track)
    found = assemble(card, track)
    return Model(card.name, found.digest, found.network.eval().requires_grad_(False), found.architecture, card)
