"""A procedure on top of a model, as the engine and the attacks take it in place of a model."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from robustbench_vlm.attacks.base import Attack, Stage, View
from robustbench_vlm.attacks.model import Transferred
from robustbench_vlm.core import random as randomness
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.fingerprint import fingerprint
from robustbench_vlm.core.registry import unknown
from robustbench_vlm.models.card import ModelCard
from robustbench_vlm.models.classifier import Model
from robustbench_vlm.models.open_clip import Architecture
from robustbench_vlm.models.reference import ModelReference, parse_reference
from robustbench_vlm.models.text_encoder import PromptTower
from robustbench_vlm.test_time import TEST_TIME_DEFENSES
from robustbench_vlm.test_time.base import Context, TestTimeDefense

_TRANSFER = View("transfer", "transfer")
_AS_IT_IS = View("", "loop")


class DefendedClassifier(nn.Module):
    """What all samples of a dataset share: towers, texts and the procedure; `of_samples` makes the classifier."""

    null_features: Tensor

    def __init__(self, made: "DefendedModel", prompts: Sequence[str | tuple[str, ...]]) -> None:
        super().__init__()
        self.procedure, self.plain = made.procedure, made.model.classifier(prompts)
        self.undefended = made.undefended.encoder
        towers = made.model.network, made.model.architecture
        self.prompts = PromptTower(*towers, prompts) if made.procedure.tunes_texts else None
        self.register_buffer("null_features", made.model.text_features(made.procedure.texts or prompts))

    @property
    def scale(self) -> float:
        """The logit scale."""
        return self.plain.scale

    @property
    def pictures(self) -> int:
        """Images that one sample has in memory at once."""
        return self.procedure.pictures

    def of_samples(self, keys: Tensor) -> "DefendedLogits":
        """Return the classifier of the samples with these random streams, (B,), int64."""
        return DefendedLogits(self, randomness.derive(keys, self.procedure.name))

    def in_precision(self, name: str, logits: str = "float32") -> "DefendedClassifier":
        """Return the classifier itself for float32; raise UserError for any other precision."""
        if other := {name, logits} - {"float32"}:
            raise UserError(
                f"the procedure {self.procedure.name!r} runs in float32 alone, and the protocol asks for"
                f" {' and '.join(sorted(other))}: take another --protocol, such as the track's first"
            )
        return self

    def context(self, keys: Tensor, *, differentiate: bool) -> Context:
        """Return what the procedure's function gets."""
        return Context(
            keys=keys,
            features=self.plain.encoder,
            undefended=self.undefended,
            text_features=self.plain.text_features,
            null_features=self.null_features,
            tokens=self.plain.text_features if self.prompts is None else self.prompts.tokens,
            text_tower=self.prompts or _no_texts,
            scale=self.scale,
            settings=self.procedure.settings,
            differentiate=differentiate,
        )


@dataclass(frozen=True)
class DefendedLogits:
    """The classifier of certain samples: the logits are a function of each one's image and its own random numbers."""

    shared: DefendedClassifier
    keys: Tensor
    view: View = _AS_IT_IS

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits (B, C): those of the samples' own draws, with the gradient that the view gives them."""
        assert len(images) == len(self.keys), f"{len(images)} images for {len(self.keys)} samples"
        own = self._logits(images, self.keys)
        if self.view.draws == 1 or not torch.is_grad_enabled():
            return own
        others = [randomness.derive(self.keys, f"draw {number}") for number in range(1, self.view.draws)]
        mean = sum((self._logits(images, keys) for keys in others), own) / self.view.draws
        return own.detach() + (mean - mean.detach())

    def of(self, index: Tensor) -> "DefendedLogits":
        """Return the classifier of the samples at `index` (int64)."""
        return replace(self, keys=self.keys[index])

    def seen(self, view: View) -> "DefendedLogits | Transferred":
        """Return the classifier as an attack sees it."""
        return Transferred(self.shared.plain, self) if view.gradient == "transfer" else replace(self, view=view)

    def passes(self, *, gradient: bool) -> tuple[int, int]:
        """Return the passes through image towers of one sample in a call, by the procedure's own account."""
        passes = self.shared.procedure.passes(self.shared.procedure.settings)
        if not gradient:
            return passes.forward, passes.inner
        # A gradient of a gradient goes back through both passes that made it.
        through = 2 * passes.inner if self.view.gradient == "loop" else 0
        return self.view.draws * passes.forward, self.view.draws * (passes.inner + passes.outer + through)

    def _logits(self, images: Tensor, keys: Tensor) -> Tensor:
        context = self.shared.context(keys, differentiate=self.view.gradient == "loop")
        # The fused kernels of attention have no gradient of their gradient.
        with sdpa_kernel(SDPBackend.MATH):
            return self.shared.procedure.logits(context, images)


@dataclass(frozen=True)
class DefendedModel:
    """A procedure on top of a model: a model of its own."""

    procedure: TestTimeDefense
    model: Model
    undefended: Model
    """What the model was made from, or the model where the procedure does not ask for it."""

    @property
    def name(self) -> str:
        """NAME+MODEL."""
        return f"{self.procedure.name}+{self.model.name}"

    @functools.cached_property
    def digest(self) -> str:
        """sha256 over the procedure's name, settings and texts, and the weights of both models."""
        procedure = [self.procedure.name, self.procedure.version, self.procedure.settings, self.procedure.texts]
        return fingerprint([*procedure, self.model.digest, self.undefended.digest])

    @property
    def architecture(self) -> Architecture:
        """That of the model under the procedure."""
        return self.model.architecture

    @property
    def card(self) -> ModelCard | None:
        """That of the model under the procedure."""
        return self.model.card

    def classifier(self, prompts: Sequence[str | tuple[str, ...]]) -> DefendedClassifier:
        """Return what the samples of one dataset share."""
        return DefendedClassifier(self, prompts).eval().requires_grad_(False)

    def adapt_attack(self, attack: Attack) -> Attack:
        """Return the attack on this model: every stage transferred, then in each of the procedure's views.

        Raises UserError for stages that do not know which sample an image is of.
        """
        foreign = [stage.name for stage in attack.stages if not stage.takes_mixed]
        if foreign:
            raise UserError(
                f"{self.name!r} draws random numbers that belong to a sample, and {foreign[0]} does not say which"
                " sample it asks about: take an attack of this package, such as autoattack or pgd-20"
            )
        transferred = [_through(stage, _TRANSFER) for stage in attack.stages]
        adaptive = [stage for each in attack.stages for stage in self._seen(each)]
        return replace(attack, stages=(*transferred, *adaptive))

    def _seen(self, stage: Stage) -> list[Stage]:
        if stage.is_black_box:
            return [replace(stage, takes_mixed=False)]
        return [_through(stage, view) for view in self.procedure.views]


def _no_texts(tokens: Tensor) -> Tensor:
    raise NotImplementedError("this procedure does not say that it tunes texts")


def _through(stage: Stage, view: View) -> Stage:
    # Samples of other datasets would be classified among classes that are not theirs.
    return replace(stage, name=f"{view.name}:{stage.name}", view=view, takes_mixed=False)


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
    procedure: TestTimeDefense = TEST_TIME_DEFENSES.load(parsed.defense)
    below = str(parsed.model)
    model = load(below)
    base = load(_original(model.card, below) or undefended) if procedure.needs_undefended else model
    assert isinstance(model, Model) and isinstance(base, Model), f"{below!r} or its base has a test-time defense"
    return DefendedModel(procedure, model, base)


def _original(card: ModelCard | None, reference: str) -> str:
    """Return the model that the card's was made from: its base, or itself if open_clip's; "" if it does not say."""
    if card is None:
        return ""
    return reference if card.pretrained else card.base_reference
