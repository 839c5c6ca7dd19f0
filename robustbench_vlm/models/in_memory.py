"""Models in memory: make zero-shot models from torch modules, open_clip models and transformers models in Python."""

import copy
import functools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.fingerprint import fingerprint
from robustbench_vlm.models import CONTEXT_LENGTH
from robustbench_vlm.models.classifier import ZeroShotClassifier, class_features
from robustbench_vlm.models.code_identity import identity_of, state_of, tensor_digest
from robustbench_vlm.models.pixel_encoder import PixelEncoder, checked_embeddings
from robustbench_vlm.models.precision import arithmetic
from robustbench_vlm.models.reference import IN_MEMORY, UNPINNED
from robustbench_vlm.models.zero_shot_arguments import (
    ZERO_SHOT_FORMS,
    check_callables,
    check_dimensions,
    check_settings,
    checked_name,
)

DIGEST_PREFIXES = (IN_MEMORY, UNPINNED)
"""The two prefixes that digests of models in memory have. Digests of other models have no prefix."""
_TEXTS_AT_ONCE = 256
_PROBES = ("a photo of a dog.", "the number 7", "a red square on a white table")
"""Fixed texts. The digest of a text encoder covers the embeddings or tokens of these texts."""


@dataclass(frozen=True, eq=False)
class Original:
    """A module that `zero_shot` copied, and its state at that time."""

    kind: str
    """The name of the module's class."""
    module: "weakref.ref[nn.Module]"
    """A weak reference, so that the memory of the module is free when the user deletes the module."""
    state: Mapping[str, Any]

    def has_changed(self) -> bool:
        """Return whether the module still exists and has another state."""
        module = self.module()
        return module is not None and state_of(module) != self.state


@dataclass(frozen=True, eq=False)
class InMemoryModel:
    """A zero-shot model in the memory of this process, made by `zero_shot`."""

    name: str
    encoder: PixelEncoder
    """The image encoder, including resize and normalisation."""
    embed_texts: Callable[[list[str]], Any]
    """Maps N texts to embeddings, float [N, D]."""
    scale: float
    """The logit scale. The cosine similarities are multiplied by it."""
    bias: float = 0.0
    """The logit bias, a number that is added to every logit and therefore changes no prediction."""
    card: None = None
    """None, because a model in memory does not have a model card."""
    stated: Mapping[str, Any] = field(default_factory=dict)
    """The preprocessing values that were read from the model or its processor. The keys are arguments of `zero_shot`.
    """
    processor: Any = None
    """The tokenizer or processor from which the model was made. None if the model was made from two encoders."""
    originals: tuple["Original", ...] = ()
    """The modules that `zero_shot` copied."""
    digest_prefix: str = IN_MEMORY
    """The prefix of a digest that covers the whole model. It is "" if other machines can load the model by its name.

    If the digest does not cover the whole model, the prefix is `UNPINNED` instead.
    """

    @property
    def image_size(self) -> int:
        """Height and width of the image encoder's input, in pixels."""
        return self.encoder.image_size

    @property
    def context_length(self) -> int:
        """The largest number of tokens that the text encoder reads.

        If the text encoder does not give access to its tokens, this is CLIP's context length.
        """
        tokens = getattr(self.embed_texts, "tokens", None)
        return int(tokens(list(_PROBES[:1])).shape[1]) if callable(tokens) else CONTEXT_LENGTH

    @functools.cached_property
    def doubts(self) -> tuple[str, ...]:
        """Descriptions of the parts of the model that the digest does not cover. Empty if it covers all parts."""
        return tuple(doubt for identity in self._identities for doubt in identity.doubts)

    @functools.cached_property
    def digest(self) -> str:
        """A sha256 over tensors, structure, code and preprocessing, with a prefix.

        The prefix is "unpinned:" if the digest does not cover all parts of the model.
        """
        encoder = self.encoder
        pixels = [encoder.image_size, encoder.mean.flatten().tolist(), encoder.std.flatten().tolist()]
        parts: list[Any] = [identity.parts for identity in self._identities]
        parts += [pixels, encoder.interpolation, self.scale, self.bias]
        tokens = getattr(self.embed_texts, "tokens", None)
        if callable(tokens):
            parts.append(tensor_digest(tokens(list(_PROBES))))
        if not self.doubts:
            return self.digest_prefix + fingerprint(parts)
        # The digests of code and tensors may miss a change of the model. Most such changes also change the
        # outputs on fixed inputs.
        outputs = [tensor_digest(self.text_features(_PROBES)), tensor_digest(self._image_outputs())]
        return UNPINNED + fingerprint([*parts, *outputs])

    def check_again(self) -> None:
        """Compute the digest again when it is needed next, because code, globals and closures may have changed.

        Raises UserError if a module that `zero_shot` copied has changed since then.
        """
        for key in ("digest", "doubts", "_identities"):
            self.__dict__.pop(key, None)
        if changed := [each.kind for each in self.originals if each.has_changed()]:
            raise UserError(
                f"the {changed[0]} from which zero_shot made the model {self.name!r} has changed since that call, but"
                " the model is a copy from before the change: call zero_shot again to measure the changed module, or"
                " give zero_shot a copy.deepcopy of the module to keep and measure an earlier state"
            )

    def text_features(self, prompts: Sequence[str | tuple[str, ...]]) -> Tensor:
        """Return the text embedding of each class, float32 [C, D], with unit length.

        If a class has several prompts, their embeddings are averaged.
        """
        return class_features(prompts, self._embed)

    def classifier(self, prompts: Sequence[str | tuple[str, ...]]) -> ZeroShotClassifier:
        """Return the zero-shot classifier for C classes. `prompts` has one text or a tuple of texts per class."""
        return ZeroShotClassifier(self.encoder, self.text_features(prompts), self.scale, bias=self.bias).eval()

    def to(self, device: str) -> None:
        """Move the encoders to a device. An encoder that is not a torch module is not moved."""
        self.encoder.to(device)
        if isinstance(self.embed_texts, nn.Module):
            self.embed_texts.to(device)

    @functools.cached_property
    def _identities(self) -> tuple[Any, Any]:
        return identity_of(self.encoder.encoder), identity_of(self.embed_texts)

    def _embed(self, texts: list[str]) -> Tensor:
        parts = [texts[start : start + _TEXTS_AT_ONCE] for start in range(0, len(texts), _TEXTS_AT_ONCE)]
        with torch.no_grad(), arithmetic():
            found = [checked_embeddings(self.embed_texts(part), len(part), "text encoder") for part in parts]
        features = functional.normalize(torch.cat(found).to(torch.float32), dim=-1)
        return features.to(self.encoder.mean.device)

    def _image_outputs(self) -> Tensor:
        side = self.image_size
        ramp = torch.linspace(0, 1, 2 * 3 * side * side, device=self.encoder.mean.device).view(2, 3, side, side)
        with torch.no_grad(), arithmetic():
            outputs: Tensor = self.encoder(ramp)
        return outputs


def zero_shot(
    model: Any = None,
    tokenizer: Any = None,
    *,
    image_encoder: Callable[[Tensor], Tensor] | None = None,
    text_encoder: Callable[[list[str]], Tensor] | None = None,
    logit_scale: float | Tensor | None = None,
    logit_bias: float | Tensor | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    interpolation: str = "bicubic",
    name: str = "",
) -> InMemoryModel:
    """Make a zero-shot model from an open_clip model, a transformers model, or a pair of encoders.

    Torch modules are copied, and the copies are put into eval mode. If the original modules are trained later, the
    returned model does not change. `evaluate` then raises UserError, so that it does not measure the earlier state by
    mistake: call `zero_shot` again after training. To keep an earlier state, give a `copy.deepcopy` of the module.

    Args:
        model: An open_clip model, a `CLIPModel` or `SiglipModel` of transformers, or any module with the methods
            `encode_image` and `encode_text`.
        tokenizer: The tokenizer of open_clip, or the processor or tokenizer of transformers.
        image_encoder: In place of `model`: a torch module or function from normalised pixels, float32
            [B, 3, image_size, image_size], to embeddings, float [B, D]. A module with weights in another dtype, such as
            float16, gets pixels in this dtype.
        text_encoder: In place of `model`: a torch module or function from a list of N texts to embeddings, float
            [N, D]. Embeddings need not have unit length.
        logit_scale: The factor that multiplies the cosine similarities, such as 100.0 (not its logarithm).
        logit_bias: A number that is added to every logit, such as SigLIP's bias. The number changes no prediction.
        image_size: Height and width of the image encoder's input, in pixels.
        mean: Three channel means that are subtracted from pixels in [0, 1].
        std: Three channel standard deviations that pixels are divided by.
        interpolation: "bicubic" or "bilinear", for the resize of images whose size is not `image_size`.
        name: Name in tables and records. The default is the class name of the model.

    If the model or its processor states one of these values, an argument of this function replaces the stated value.

    Raises:
        UserError: A value is missing or cannot be used.
    """
    given: dict[str, Any] = {
        "logit_scale": logit_scale,
        "logit_bias": logit_bias,
        "image_size": image_size,
        "mean": mean,
        "std": std,
    }
    given = {key: value for key, value in given.items() if value is not None}
    if model is not None:
        if image_encoder is not None or text_encoder is not None:
            raise UserError(f"both a model and encoders were given: write {ZERO_SHOT_FORMS}")
        made = model_of_library(_copied(model), tokenizer, given, interpolation, name or type(model).__name__)
        return replace(made, originals=_originals(model))
    if image_encoder is None or text_encoder is None:
        raise UserError(f"a zero-shot model needs an image encoder and a text encoder: write {ZERO_SHOT_FORMS}")
    check_callables(image_encoder=image_encoder, text_encoder=text_encoder)
    default_name = getattr(image_encoder, "__name__", type(image_encoder).__name__)
    made = _made(_copied(image_encoder), _copied(text_encoder), given, interpolation, name or default_name)
    return replace(made, originals=_originals(image_encoder, text_encoder))


def model_of_library(
    model: Any, tokenizer: Any, given: Mapping[str, Any], interpolation: str, name: str
) -> InMemoryModel:
    """Make a zero-shot model from a model of open_clip or transformers without a copy of its weights.

    The caller must not change `model` later. `given` has arguments of `zero_shot`. They replace the values that
    are read from the model. Raises UserError for the same reasons as `zero_shot`.
    """
    from robustbench_vlm.models.adapters import encoders_of

    found = encoders_of(model, tokenizer)
    made = _made(found.image, found.text, {**found.settings, **given}, interpolation, name)
    return replace(made, stated=found.settings, processor=tokenizer)


def _made(
    image_encoder: Callable[[Tensor], Any],
    text_encoder: Callable[[list[str]], Any],
    values: Mapping[str, Any],
    interpolation: str,
    name: str,
) -> InMemoryModel:
    missing = [key for key in ("logit_scale", "image_size", "mean", "std") if values.get(key) is None]
    if missing:
        raise UserError(
            f"zero_shot needs {', '.join(missing)}, which the model does not state: write {ZERO_SHOT_FORMS}"
        )
    check_settings(values, interpolation)
    made = InMemoryModel(
        name=checked_name(name),
        encoder=PixelEncoder(
            image_encoder, int(values["image_size"]), tuple(values["mean"]), tuple(values["std"]), interpolation
        ).eval(),
        embed_texts=text_encoder,
        scale=float(values["logit_scale"]),
        bias=float(values.get("logit_bias") or 0.0),
    )
    check_dimensions(made)
    return made


_registered: dict[str, InMemoryModel] = {}
"""The models that can be loaded in this process by a reference "memory:NAME". The keys are the values of NAME."""


@contextmanager
def registered(models: Sequence[InMemoryModel], named: Sequence[str]) -> Iterator[list[str]]:
    """Register models in memory for the duration of a run, and yield their references "memory:NAME".

    `named` contains the names of the track's models. Raises UserError if two models have the same name, or if a module
    has changed since `zero_shot` copied it.
    """
    for model in models:
        model.check_again()
    names = [model.name for model in models]
    if taken := [name for name in names if name in named]:
        raise UserError(f"{taken[0]!r} is a model of the track: give the model in memory another name by name=")
    if repeated := [name for name in names if names.count(name) > 1 or name in _registered]:
        raise UserError(
            f"two models in memory are named {repeated[0]!r}, so their records would mix: give each a name by name="
        )
    _registered.update(zip(names, models, strict=True))
    try:
        yield [f"{IN_MEMORY}{name}" for name in names]
    finally:
        for name in names:
            del _registered[name]


def find_registered(name: str) -> InMemoryModel:
    """Return the registered model in memory with the name `name`. Raises UserError if no such model exists."""
    if name not in _registered:
        raise UserError(
            f"the model {IN_MEMORY}{name} exists only in the Python process that made it: call evaluate with the model"
            " itself, or save its weights and give a model card"
        )
    return _registered[name]


def renamed(model: InMemoryModel, name: str) -> InMemoryModel:
    """Return the model with the name `name`; raise UserError if the name cannot be used."""
    return replace(model, name=checked_name(name))


def _copied(value: Any) -> Any:
    if not isinstance(value, nn.Module):
        return value
    try:
        made = copy.deepcopy(value)
    except (RuntimeError, TypeError) as error:
        raise UserError(
            f"the {type(value).__name__} cannot be copied ({error}): detach tensors that are results of a computation"
        ) from error
    return made.eval().requires_grad_(False)


def _originals(*modules: Any) -> tuple[Original, ...]:
    return tuple(
        Original(type(each).__name__, weakref.ref(each), state_of(each))
        for each in modules
        if isinstance(each, nn.Module)
    )
