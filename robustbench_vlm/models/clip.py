"""Zero-shot classifiers from CLIP models: one path for the embedded model and for every open_clip one."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_vlm.errors import UserError
from robustbench_vlm.models.architecture import Architecture, load_architecture
from robustbench_vlm.models.card import ModelCard, find_card
from robustbench_vlm.models.convolution import quick_at_pixels
from robustbench_vlm.models.folding import FoldedResNet, folded
from robustbench_vlm.models.weights import load_weights
from robustbench_vlm.records import fingerprint
from robustbench_vlm.registry import unknown

_OPEN_CLIP = "open_clip:"


class ImageEncoder(nn.Module):
    """Pictures in [0, 1], any size, to class embeddings (B, D) that are not normalised.

    Resize (bicubic) and normalisation lie in here, so that a perturbation lives in pixels before them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, visual: nn.Module, architecture: Architecture) -> None:
        super().__init__()
        # Convolutions run up to twice as fast in this order of memory, on CPU and GPU.
        self.visual = visual.to(memory_format=torch.channels_last)
        self.architecture, self.side = architecture, architecture.side
        self.register_buffer("mean", torch.tensor(architecture.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(architecture.std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings of pictures."""
        features: Tensor = self.visual(self._pixels(images))
        return features

    def dense(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings (B, D) and those of a square of T places, (B, T, D), in the same space.

        Raises UserError for a tower that has no embeddings of places.
        """
        from open_clip.transformer import VisionTransformer

        if isinstance(self.visual, FoldedResNet):
            return self.visual.dense(self._pixels(images))
        if not isinstance(self.visual, VisionTransformer) or self.visual.final_ln_after_pool:
            raise UserError(f"a {type(self.visual).__name__} has no embeddings of places: take a vision transformer")
        before, self.visual.output_tokens = self.visual.output_tokens, True
        try:
            features, places = self.visual(self._pixels(images))
        finally:
            self.visual.output_tokens = before
        return features, places @ self.visual.proj

    def _pixels(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (self.side, self.side):
            images = functional.interpolate(images, (self.side, self.side), mode="bicubic", align_corners=False)
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


class ZeroShotClassifier(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] to float32 logits (B, C): scale times the cosine with each class's text."""

    text_features: Tensor

    def __init__(self, encoder: nn.Module, text_features: Tensor, scale: float) -> None:
        super().__init__()
        self.encoder, self.scale = encoder, scale
        self.register_buffer("text_features", text_features)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of pictures."""
        return self.scale * self.image_features(images) @ self.text_features.T

    def image_features(self, images: Tensor) -> Tensor:
        """Return the unit embedding of each picture, (B, D), in the type of the texts' embeddings."""
        features = self.encoder(images)
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

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """Return the unit embedding of each prompt, float32 (C, D)."""
        device = self.network.get_parameter("logit_scale").device
        with torch.no_grad():
            features: Tensor = self.network.encode_text(  # type: ignore[operator]
                tokenize(prompts, self.architecture).to(device), normalize=True
            )
        return features.to(torch.float32)

    def classifier(self, prompts: Sequence[str]) -> ZeroShotClassifier:
        """Return the zero-shot classifier of the classes that the prompts describe, one prompt a class."""
        return ZeroShotClassifier(self.encoder, self.text_features(prompts), self.scale).eval().requires_grad_(False)


def tokenize(prompts: Sequence[str], architecture: Architecture) -> Tensor:
    """Return the tokens of texts, int64 (N, context length)."""
    length = int(architecture.config["text_cfg"].get("context_length", 77))
    tokens: Tensor = _tokenizer(length)(list(prompts))
    return tokens


@functools.cache
def _tokenizer(length: int) -> Callable[[list[str]], Tensor]:
    import open_clip

    tokenizer: Callable[[list[str]], Tensor] = open_clip.SimpleTokenizer(context_length=length)
    return tokenizer


def load_model(reference: str, track: str) -> Model:
    """Return the model of a name on a track, of a card file, or of "open_clip:ARCH/PRETRAINED".

    Raises UserError for unknown names, wrong digests, damaged weights, and downloads that fail.
    """
    if reference.startswith(_OPEN_CLIP):
        return _from_open_clip(reference)
    card = find_card(reference, track)
    architecture = load_architecture(card.architecture)
    network = architecture.build()
    folder = Path(card.folder)
    image = {f"visual.{key}": value for key, value in load_weights(folder, card.image).items()}
    problems = network.load_state_dict({**image, **load_weights(folder, card.text)}, strict=False)
    if problems.missing_keys or problems.unexpected_keys:
        raise UserError(
            f"the weights of {card.name!r} do not fit {card.architecture!r}: missing {problems.missing_keys[:3]},"
            f" unexpected {problems.unexpected_keys[:3]}; the card names the wrong architecture or the wrong file"
        )
    digest = fingerprint([card.architecture, card.image.sha256, card.text.sha256])
    return Model(card.name, digest, network.eval().requires_grad_(False), architecture, card)


def _from_open_clip(reference: str) -> Model:
    import open_clip

    name, _, pretrained = reference.removeprefix(_OPEN_CLIP).partition("/")
    architecture = load_architecture(f"{_OPEN_CLIP}{name}")
    if pretrained not in open_clip.list_pretrained_tags_by_model(name):
        raise UserError(unknown(f"pretrained tag of {name}", pretrained, open_clip.list_pretrained_tags_by_model(name)))
    try:
        network = open_clip.create_model(name, pretrained=pretrained)
    except Exception as error:  # the hub client raises many kinds of network and cache errors
        raise UserError(
            f"cannot fetch {reference}: {error}; check the network, or fetch the weights elsewhere and write a card"
        ) from error
    state = {key: fingerprint(_digest(value)) for key, value in network.state_dict().items()}
    return Model(reference, fingerprint(state), network.eval().requires_grad_(False), architecture)


def _digest(tensor: Tensor) -> str:
    import hashlib

    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
