"""Models with a test-time defense, which the engine and the attacks take in place of a model."""

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from robustbench_vlm.attacks.base import Attack, GradientMode, Stage
from robustbench_vlm.attacks.model import SurrogateClassifier
from robustbench_vlm.core import random as randomness
from robustbench_vlm.core.classifier_interface import Classifier
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.fingerprint import fingerprint
from robustbench_vlm.core.registry import unknown
from robustbench_vlm.models.card import ModelCard
from robustbench_vlm.models.classifier import Model
from robustbench_vlm.models.open_clip import Architecture
from robustbench_vlm.models.reference import ModelReference, parse_reference
from robustbench_vlm.models.text_encoder import PromptEncoder
from robustbench_vlm.test_time import TEST_TIME_DEFENSES
from robustbench_vlm.test_time.base import DefenseContext, TestTimeDefense

_TRANSFER = GradientMode("transfer", "transfer")
_AS_IT_IS = GradientMode("", "loop")


class DefendedClassifier(nn.Module):
    """Images (B, 3, H, W) in [0, 1] to float32 logits (B, C) of a model with a test-time defense.

    The logits depend on each sample's image and random numbers: `of_samples` binds the classifier to samples, and it is
    then called with one image for each of them.
    """

    null_features: Tensor
    keys: Tensor | None = None
    """(B,), int64: the random streams of the samples, from `of_samples` on."""
    gradient_mode = _AS_IT_IS

    def __init__(self, made: "DefendedModel", prompts: Sequence[str | tuple[str, ...]]) -> None:
        super().__init__()
        self.defense, self.plain = made.defense, made.model.classifier(prompts)
        self.undefended = made.undefended.encoder
        towers = made.model.network, made.model.architecture
        self.prompts = PromptEncoder(*towers, prompts) if made.defense.tunes_prompts else None
        self.register_buffer("null_features", made.model.text_features(made.defense.null_texts or prompts))

    @property
    def scale(self) -> float:
        """The logit scale."""
        return self.plain.scale

    @property
    def images_per_sample(self) -> int:
        """Images that one sample has in memory at once."""
        return self.defense.images_per_sample

    def of_samples(self, keys: Tensor) -> "DefendedClassifier":
        """Return the classifier of the samples with these random streams, (B,), int64."""
        return self._with(keys=randomness.derive(keys, self.defense.name))

    def select(self, index: Tensor) -> "DefendedClassifier":
        """Return the classifier of the samples at `index` (int64)."""
        return self._with(keys=self._keys()[index])

    def with_gradient(self, mode: GradientMode) -> Classifier:
        """Return the classifier as a stage with that gradient mode attacks it."""
        return SurrogateClassifier(self.plain, self) if mode.gradient == "transfer" else self._with(gradient_mode=mode)

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        """Return the passes through image encoders of one sample in a call, as the defense states them."""
        passes, mode = self.defense.passes(self.defense.settings), self.gradient_mode
        if not gradient:
            return passes.forward, passes.inner
        # A gradient of a gradient goes back through both passes that made it.
        through = 2 * passes.inner if mode.gradient == "loop" else 0
        return mode.draws * passes.forward, mode.draws * (passes.inner + passes.outer + through)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the samples' own draws, with the gradient of the gradient mode."""
        keys, draws = self._keys(), self.gradient_mode.draws
        assert len(images) == len(keys), f"{len(images)} images for {len(keys)} samples"
        own = self._logits(images, keys)
        if draws == 1 or not torch.is_grad_enabled():
            return own
        others = [randomness.derive(keys, f"draw {number}") for number in range(1, draws)]
        mean = sum((self._logits(images, each) for each in others), own) / draws
        return own.detach() + (mean - mean.detach())

    def in_precision(self, name: str, logits: str = "float32") -> "DefendedClassifier":
        """Return the classifier itself for float32; raise UserError for any other precision."""
        if other := {name, logits} - {"float32"}:
            raise UserError(
                f"the test-time defense {self.defense.name!r} runs only in float32, and the protocol asks for"
                f" {' and '.join(sorted(other))}: choose another --protocol, such as the track's first"
            )
        return self

    def context(self, keys: Tensor, *, differentiate: bool) -> DefenseContext:
        """Return the context that the function of the defense gets."""
        return DefenseContext(
            keys=keys,
            image_encoder=self.plain.encoder,
            undefended_encoder=self.undefended,
            text_features=self.plain.text_features,
            null_features=self.null_features,
            token_embeddings=self.plain.text_features if self.prompts is None else self.prompts.tokens,
            text_encoder=self.prompts or _no_texts,
            scale=self.scale,
            settings=self.defense.settings,
            differentiate=differentiate,
        )

    def _logits(self, images: Tensor, keys: Tensor) -> Tensor:
        context = self.context(keys, differentiate=self.gradient_mode.gradient == "loop")
        # Fused attention kernels do not support second derivatives.
        with sdpa_kernel(SDPBackend.MATH):
            return self.defense.logits(context, images)

    def _keys(self) -> Tensor:
        if self.keys is None:
            raise UserError(
                f"a classifier with the test-time defense {self.defense.name!r} was called without samples, and it"
                " draws random numbers for each of them: call it as classifier.of_samples(keys)(images)"
            )
        return self.keys

    def _with(self, **attributes: Any) -> "DefendedClassifier":
        # A shallow copy: it shares encoders and texts.
        changed = copy.copy(self)
        for name, value in attributes.items():
            setattr(changed, name, value)
        return changed


@dataclass(frozen=True)
class DefendedModel:
    """A model together with a test-time defense, used like any other model."""

    defense: TestTimeDefense
    model: Model
    undefended: Model
    """The model that it was made from; the model itself if the defense does not use it."""

    @property
    def name(self) -> str:
        """DEFENSE+MODEL."""
        return f"{self.defense.name}+{self.model.name}"

    @functools.cached_property
    def digest(self) -> str:
        """sha256 over the defense's name, version, settings and texts, and the weights of both models."""
        defense = [self.defense.name, self.defense.version, self.defense.settings, self.defense.null_texts]
        return fingerprint([*defense, self.model.digest, self.undefended.digest])

    @property
    def architecture(self) -> Architecture:
        """That of the model without the defense."""
        return self.model.architecture

    @property
    def card(self) -> ModelCard | None:
        """That of the model without the defense."""
        return self.model.card

    def classifier(self, prompts: Sequence[str | tuple[str, ...]]) -> DefendedClassifier:
        """Return the classifier of the classes that the prompts describe; `of_samples` binds it to samples."""
        return DefendedClassifier(self, prompts).eval().requires_grad_(False)

    def adapt_attack(self, attack: Attack) -> Attack:
        """Return the attack on this model: every stage as a transfer attack, then in each gradient mode.

        Raises UserError for stages that do not say which sample an image belongs to.
        """
        foreign = [stage.name for stage in attack.stages if not stage.mixes_datasets]
        if foreign:
            raise UserError(
                f"{self.name!r} draws random numbers for each sample, and {foreign[0]} does not say which sample an"
                " image belongs to: choose an attack of this package, such as autoattack or pgd-20"
            )
        transferred = [_in_mode(stage, _TRANSFER) for stage in attack.stages]
        adaptive = [stage for each in attack.stages for stage in self._adaptive_stages(each)]
        return replace(attack, stages=(*transferred, *adaptive))

    def _adaptive_stages(self, stage: Stage) -> list[Stage]:
        if stage.is_black_box:
            return [replace(stage, mixes_datasets=False)]
        return [_in_mode(stage, mode) for mode in self.defense.gradient_modes]


def _no_texts(tokens: Tensor) -> Tensor:
    raise NotImplementedError("this test-time defense uses the text encoder: set tunes_prompts=True in it")


def _in_mode(stage: Stage, mode: GradientMode) -> Stage:
    # Samples of other datasets would be classified among classes that are not theirs.
    return replace(stage, name=f"{mode.name}:{stage.name}", gradient_mode=mode, mixes_datasets=False)


def checked_reference(text: str) -> ModelReference:
    """Return a parsed model reference whose test-time defense, if it names one, is registered.

    Raises UserError as `parse_reference` does, and for an unknown test-time defense.
    """
    reference = parse_reference(text)
    if reference.defense and reference.defense not in TEST_TIME_DEFENSES.names():
        known = unknown(TEST_TIME_DEFENSES.kind, reference.defense, TEST_TIME_DEFENSES.names())
        raise UserError(f"{known} {text!r} was read as DEFENSE+MODEL")
    return reference


def defended_model(
    reference: str, load: Callable[[str], "Model | DefendedModel"], undefended: str
) -> DefendedModel | None:
    """Return the model of a reference DEFENSE+MODEL; None for a reference without a test-time defense.

    `undefended` is the reference of the track's base model, for models that do not name the one they were made from.
    Raises UserError as `checked_reference` does.
    """
    parsed = checked_reference(reference)
    if not parsed.defense:
        return None
    defense: TestTimeDefense = TEST_TIME_DEFENSES.load(parsed.defense)
    below = str(parsed.model)
    model = load(below)
    base = load(_original(model.card, below) or undefended) if defense.needs_undefended else model
    assert isinstance(model, Model) and isinstance(base, Model), f"{below!r} or its base has a test-time defense"
    return DefendedModel(defense, model, base)


def _original(card: ModelCard | None, reference: str) -> str:
    """Return the model that the card's model was made from: its base, or itself for open_clip's; "" if unknown."""
    if card is None:
        return ""
    return reference if card.pretrained else card.base_reference
