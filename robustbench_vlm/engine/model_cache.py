"""Loaded models and their classifiers: one cache per process, for models with and without a test-time defense."""

import functools
import gc

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.models.classifier import Model, ZeroShotClassifier, load_model
from robustbench_vlm.test_time.defended_model import (
    DefendedClassifier,
    DefendedModel,
    checked_reference,
    defended_model,
)
from robustbench_vlm.tracks import TRACKS

AnyModel = Model | DefendedModel
AnyClassifier = ZeroShotClassifier | DefendedClassifier


@functools.lru_cache(maxsize=1)
def loaded_model(reference: str, track: str, device: str) -> AnyModel:
    """Return the model of a reference, with its test-time defense if it names one, on a device; cached.

    Only the last model is kept: an earlier one and its classifiers are released before the next one is loaded.
    """
    release()

    @functools.cache
    def load(name: str) -> Model:
        model = load_model(name, track)
        model.network.to(device)
        return model

    return defended_model(reference, load, TRACKS.load(track).base) or load(reference)


@functools.lru_cache(maxsize=32)
def classifier_of(reference: str, track: str, prompts: tuple[str | tuple[str, ...], ...], device: str) -> AnyClassifier:
    """Return the float32 classifier of a model and prompts on a device; cached."""
    return loaded_model(reference, track, device).classifier(prompts).to(device)


@functools.lru_cache(maxsize=64)
def precise_classifier(
    reference: str, track: str, prompts: tuple[str | tuple[str, ...], ...], device: str, precision: str, logits: str
) -> AnyClassifier:
    """Return `classifier_of` with the image encoder and the logits in the named precisions; cached.

    `precision` and `logits` are names of `models.precision.PRECISIONS`.
    """
    return classifier_of(reference, track, prompts, device).in_precision(precision, logits)


def release() -> None:
    """Forget all loaded models and classifiers, so that their memory is freed and changed files are read again."""
    precise_classifier.cache_clear()
    classifier_of.cache_clear()
    loaded_model.cache_clear()
    gc.collect()


def expect_weights(reference: str) -> None:
    """Raise UserError for a reference to a model with a test-time defense, where only plain weights can be used."""
    parsed = checked_reference(reference)
    if parsed.defense:
        raise UserError(
            f"{reference!r} has a test-time defense, and this command looks at the weights of a model only: give the"
            f" model without it, {str(parsed.model)!r}; `vlmbench run` accepts test-time defenses"
        )
