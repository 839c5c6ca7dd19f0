"""Zero-shot classifiers from CLIP models: one path for the embedded model and for every open_clip one."""

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
"""Images that an encoder is given at once are a multiple of this: kernels for fewer round in another order, and a
verdict at the edge of an attack's reach would depend on how many samples are attacked together."""


class ZeroShotClassifier(nn.Module):
    """Images (B, 3, H, W) in [0, 1] to float32 logits (B, C): scale times the cosine with each class's text."""

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
            # Rounded once: how a product of float32 numbers is rounded depends on how many classes it is with.
            return (self.scale * features.double() @ self.text_features.double().T).to(self.text_features.dtype)
        # The encoder may run in less, the attack's gradient through it too; logits do where the protocol says so alone.
        with products(self.logits, images.device.type):
            found = self.scale * features @ self.text_features.T
        return found.to(self.text_features.dtype)

    @property
    def plain(self) -> "ZeroShotClassifier":
        """The classifier without a test-time defense: itself."""
        return self

    def in_precision(self, name: str, logits: str = "float32") -> "ZeroShotClassifier":
        """Return the classifier with encoder, and product with the texts, in precisions of `precision.PRECISIONS`."""
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
        """Return the unit embedding of each image, (B, D), in the type of the texts' embeddings."""
        features = self.encoder(_filled(images))[: len(images)]
        # Half-precision encoders are for speed; logits decide verdicts and are never less than float32.
        return functional.normalize(features.to(self.text_features.dtype), dim=-1)


@dataclass(frozen=True)
class Model:
    """A loaded model: its name, the identity of its weights, and the two towers, frozen and in eval mode."""

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
        """The image tower with resize and normalisation inside; all classifiers of the model share it."""
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
        """Return the zero-shot classifier of the classes that the prompts describe: a text a class, or several."""
        return ZeroShotClassifier(self.encoder, self.text_features(prompts), self.scale).eval().requires_grad_(False)


def _filled(images: Tensor) -> Tensor:
    """Return images with some more, so that there are a multiple of _ROWS."""
    more = -len(images) % _ROWS
    return torch.cat([images, images[-1:].detach().expand(more, -1, -1, -1)]) if more else images


def load_model(reference: str, track: str) -> Model:
    """Return the model of a name on a track, of a card file, or of "open_clip:ARCH/TAG".

    Raises UserError for unknown names, wrong digests, damaged weights, models that nobody has released, and downloads
    that fail.
    """
    card = find_card(reference, track)
    found = assemble(card, track)
    return Model(card.name, found.digest, found.network.eval().requires_grad_(False), found.architecture, card)
