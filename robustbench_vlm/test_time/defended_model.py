"""Models with a test-time defense. The engine and the attacks use them like other models."""

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from robustbench_vlm.attacks.base import Attack, GradientMode, Stage
from robustbench_vlm.attacks.surrogate_gradients import differentiated
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
from robustbench_vlm.test_time.base import DefenseContext, Objective, TestTimeDefense, shortened, straight_through

_TRANSFER = GradientMode("transfer", "transfer")
_DIRECT = GradientMode("", "loop")


class DefendedClassifier(nn.Module):
    """A classifier with a test-time defense: images float32 (B, 3, H, W) in [0, 1] to logits float32 (B, C).

    The logits of an image depend on the random numbers of its sample. Call `of_samples` first, and then call the
    returned classifier with one image for each sample.
    """

    null_features: Tensor
    """Text embeddings of the null texts, float32 (N, D) of norm 1."""
    keys: Tensor | None = None
    """The key of each sample's random numbers, int64 (B,). It is None before a call of `of_samples`."""
    gradient_mode = _DIRECT

    def __init__(self, made: "DefendedModel", prompts: Sequence[str | tuple[str, ...]]) -> None:
        super().__init__()
        self.defense, self.plain = made.defense, made.model.classifier(prompts)
        self.undefended = made.undefended.encoder
        network, architecture = made.model.network, made.model.architecture
        self.prompts = PromptEncoder(network, architecture, prompts) if made.defense.tunes_prompts else None
        self.register_buffer("null_features", made.model.text_features(made.defense.null_texts or prompts))

    @property
    def scale(self) -> float:
        """The logit scale."""
        return self.plain.scale

    @property
    def images_per_sample(self) -> int:
        """The number of images that one sample needs in memory at once."""
        return self.defense.images_per_sample

    def of_samples(self, keys: Tensor) -> "DefendedClassifier":
        """Return a classifier for B samples. `keys`, int64 (B,), has the key of the random numbers of each sample."""
        return self._with(keys=randomness.derive(keys, self.defense.name))

    def select(self, index: Tensor) -> "DefendedClassifier":
        """Return a classifier for only the N samples at the positions `index`, int64 (N,)."""
        return self._with(keys=self.sample_keys[index])

    def with_defense(self, defense: TestTimeDefense) -> "DefendedClassifier":
        """Return this classifier with another form of its defense, such as one with another gradient."""
        return self._with(defense=defense)

    def redrawn(self, purpose: str, number: Tensor | int) -> "DefendedClassifier":
        """Return this classifier with other random numbers: the draw `number` for `purpose`.

        `number` is one integer for all samples, or int64 (B,).
        """
        return self._with(keys=randomness.redraw(self.sample_keys, purpose, number))

    def with_gradient(self, mode: GradientMode) -> Classifier:
        """Return a classifier with equal logits. Its gradient is computed in the mode `mode`."""
        if mode.gradient in ("transfer", "straight-through", "identity", "estimated"):
            return differentiated(self, self.plain, mode)
        return self._with(gradient_mode=mode)

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        """Return the forward and backward passes through image encoders for one sample in one call."""
        passes, mode = self.defense.passes(self.defense.settings), self.gradient_mode
        if not gradient:
            return passes.forward, passes.inner
        if mode.gradient == "truncated":
            short = self.defense.passes(shortened(self.defense.settings))
            forward, backward = passes.forward + short.forward, passes.inner + 3 * short.inner + short.outer
            return mode.draws * forward, mode.draws * backward
        # To differentiate a gradient, torch goes back through the two passes (forward and backward) that computed it.
        through = 2 * passes.inner if mode.gradient == "loop" else 0
        return mode.draws * passes.forward, mode.draws * (passes.inner + passes.outer + through)

    def objective(self, images: Tensor) -> Tensor:
        """Return the objective of the defense, float32 (B,), for images (B, 3, H, W) of the samples, with a gradient.

        Raises UserError if the defense has no objective.
        """
        context = self.context(self.sample_keys, differentiate=True)
        with sdpa_kernel(SDPBackend.MATH):
            return self._stated_objective.values(context, images)

    def objective_cost(self, *, gradient: bool) -> tuple[int, int]:
        """Return the forward and backward passes of one call of `objective` for one sample."""
        passes = self._stated_objective.passes(self.defense.settings)
        return passes.forward, passes.inner + passes.outer * gradient

    @property
    def _stated_objective(self) -> Objective:
        if self.defense.objective is None:
            raise UserError(
                f"the test-time defense {self.defense.name!r} has no objective, but the algorithm 'apgd-objective'"
                " needs one: set `objective` in its TestTimeDefense, or choose another algorithm, such as 'apgd'"
            )
        return self.defense.objective

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits float32 (B, C) of the images of the samples.

        The gradient mode decides how the gradient is computed. If the mode draws the random numbers
        several times, the logits come from the first draw, and the gradient is the mean over all draws.
        """
        keys, draws = self.sample_keys, self.gradient_mode.draws
        assert len(images) == len(keys), f"{len(images)} images for {len(keys)} samples"
        own = self._logits(images, keys)
        if draws == 1 or not torch.is_grad_enabled():
            return own
        others = [randomness.derive(keys, f"draw {number}") for number in range(1, draws)]
        mean = sum((self._logits(images, each) for each in others), own) / draws
        return own.detach() + (mean - mean.detach())

    def in_precision(self, name: str, logits: str = "float32") -> "DefendedClassifier":
        """Return this classifier if both precisions are float32; raise UserError for other precisions."""
        if other := {name, logits} - {"float32"}:
            raise UserError(
                f"the test-time defense {self.defense.name!r} runs only in float32, but the protocol uses"
                f" {' and '.join(sorted(other))}: choose another --protocol, such as the first one of the track"
            )
        return self

    def context(self, keys: Tensor, *, differentiate: bool) -> DefenseContext:
        """Return the context for a call of the defense. `keys`, int64 (B,), has the keys of the samples."""
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
        is_truncated = self.gradient_mode.gradient == "truncated" and torch.is_grad_enabled()
        differentiate = self.gradient_mode.gradient in ("loop", "truncated")
        context = self.context(keys, differentiate=differentiate and not is_truncated)
        # The gradient of this function may be differentiated again, but fused attention kernels
        # have no second derivatives.
        with sdpa_kernel(SDPBackend.MATH):
            if not is_truncated:
                return self.defense.logits(context, images)
            with torch.no_grad():
                whole = self.defense.logits(context, images)
            short = replace(context, settings=shortened(context.settings), differentiate=True)
            return straight_through(whole, self.defense.logits(short, images))

    @property
    def sample_keys(self) -> Tensor:
        """The key of each sample's random numbers, int64 (B,). Raises UserError before a call of `of_samples`."""
        if self.keys is None:
            raise UserError(
                f"a classifier with the test-time defense {self.defense.name!r} was called without samples, but its"
                " random numbers depend on the sample: call it as classifier.of_samples(keys)(images)"
            )
        return self.keys

    def _with(self, **attributes: Any) -> "DefendedClassifier":
        # The copy is shallow. It shares the encoders and the text features with this classifier.
        changed = copy.copy(self)
        for name, value in attributes.items():
            setattr(changed, name, value)
        return changed


@dataclass(frozen=True)
class DefendedModel:
    """A model with a test-time defense. It is used like any other model."""

    defense: TestTimeDefense
    model: Model
    undefended: Model
    """The undefended model from which `model` was trained. If the defense does not use an undefended model, this field
    is equal to `model`."""

    @property
    def name(self) -> str:
        """The name of the defense and the name of the model, joined by "+"."""
        return f"{self.defense.name}+{self.model.name}"

    @functools.cached_property
    def digest(self) -> str:
        """A sha256 over the defense (name, version, settings and null texts) and the weights of both models."""
        defense = [self.defense.name, self.defense.version, self.defense.settings, self.defense.null_texts]
        return fingerprint([*defense, self.model.digest, self.undefended.digest])

    @property
    def image_size(self) -> int:
        """Height and width of the image encoder's input, in pixels."""
        return self.model.image_size

    @property
    def context_length(self) -> int:
        """The largest number of tokens that the text encoder reads, including the start and end tokens."""
        return self.model.context_length

    @property
    def architecture(self) -> Architecture:
        """The architecture of `model`."""
        return self.model.architecture

    @property
    def card(self) -> ModelCard | None:
        """The card of `model`."""
        return self.model.card

    def classifier(self, prompts: Sequence[str | tuple[str, ...]]) -> DefendedClassifier:
        """Return the classifier for C classes. `prompts` has one text or a tuple of texts per class.

        Call `of_samples` of the classifier before you use it.
        """
        return DefendedClassifier(self, prompts).eval().requires_grad_(False)

    def adapt_attack(self, attack: Attack) -> Attack:
        """Return the attack with its stages adapted to this model.

        First, all stages attack the model without the defense (transfer attacks). After that, all stages attack the
        model with the defense, in each gradient mode. The random numbers of the defense depend on the sample, so a
        stage must say to which sample an image belongs. A stage that already has a gradient mode, such as a stage of an
        attack file, runs only in this mode. Raises UserError if a stage without a gradient mode has a false
        `mixes_datasets`, because such a stage does not say it.
        """
        unsupported = [stage.name for stage in attack.stages if not (stage.mixes_datasets or stage.gradient_mode)]
        if unsupported:
            raise UserError(
                f"the random numbers of {self.name!r} depend on the sample, but {unsupported[0]} does not say which"
                " sample an image belongs to: choose an attack of this package, such as autoattack or pgd-20"
            )
        transferred = [_in_mode(stage, _TRANSFER) for stage in attack.stages if stage.gradient_mode is None]
        adaptive = [stage for each in attack.stages for stage in self._adaptive_stages(each)]
        return replace(attack, stages=(*transferred, *adaptive))

    def _adaptive_stages(self, stage: Stage) -> list[Stage]:
        if stage.is_black_box or stage.gradient_mode is not None:
            return [replace(stage, mixes_datasets=False)]
        return [_in_mode(stage, mode) for mode in self.defense.gradient_modes]


def _no_texts(tokens: Tensor) -> Tensor:
    raise NotImplementedError(
        "the test-time defense uses the text encoder: set tunes_prompts=True in its TestTimeDefense"
    )


def _in_mode(stage: Stage, mode: GradientMode) -> Stage:
    # A defended classifier has the classes of one dataset, so a batch cannot mix datasets.
    return replace(stage, name=f"{mode.name}:{stage.name}", gradient_mode=mode, mixes_datasets=False)


def checked_reference(text: str) -> ModelReference:
    """Parse a model reference. If it has a test-time defense, check that the defense is registered.

    Raises UserError if the text is not a model reference, or if the test-time defense is unknown.
    """
    reference = parse_reference(text)
    if reference.defense and reference.defense not in TEST_TIME_DEFENSES.names():
        known = unknown(TEST_TIME_DEFENSES.kind, reference.defense, TEST_TIME_DEFENSES.names())
        raise UserError(f"{known} {text!r} was read as DEFENSE+MODEL")
    return reference


def defended_model(
    reference: str, load: Callable[[str], "Model | DefendedModel"], undefended: str
) -> DefendedModel | None:
    """Return the model of a reference DEFENSE+MODEL. Without a test-time defense, return None.

    `load` is a function that loads a model by its reference. `undefended` is the reference of the track's base model.
    It is used if the card of the model does not name a base. Raises the errors of `checked_reference`.
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
    """Return the reference of the base from which a model was trained. Return "" if the base is unknown.

    `card` and `reference` belong to the trained model. A pretrained open_clip model does not have a base. For such a
    model, `reference` is returned.
    """
    if card is None:
        return ""
    return reference if card.pretrained else card.base_reference
