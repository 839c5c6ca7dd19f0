"""Cache of loaded models and their classifiers. A model may have a test-time defense. Each process has one cache."""

import functools
import gc

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.models.classifier import Model, ZeroShotClassifier, load_model
from robustbench_vlm.models.hugging_face import load_hub_model
from robustbench_vlm.models.in_memory import InMemoryModel, find_registered
from robustbench_vlm.models.reference import HuggingFaceModel, MemoryModel, parse_reference
from robustbench_vlm.test_time.defended_model import (
    DefendedClassifier,
    DefendedModel,
    checked_reference,
    defended_model,
)
from robustbench_vlm.tracks import TRACKS

AnyModel = Model | DefendedModel | InMemoryModel
AnyClassifier = ZeroShotClassifier | DefendedClassifier


@functools.lru_cache(maxsize=1)
def loaded_model(reference: str, track: str, device: str) -> AnyModel:
    """Load a model onto a device. If the reference names a test-time defense, the returned model has this defense.

    The cache keeps only one model. Before another model is loaded, the cached model and its classifiers are released.
    """
    release()
    parsed = parse_reference(reference)
    if isinstance(parsed.model, MemoryModel):
        if parsed.defense:
            raise UserError(
                f"{reference!r}: a model in memory cannot have a test-time defense: give the model by its name"
            )
        found = find_registered(parsed.model.name)
        found.to(device)
        return found
    if isinstance(parsed.model, HuggingFaceModel) and not parsed.defense:
        from_hub = load_hub_model(parsed.model)
        from_hub.to(device)
        return from_hub

    @functools.cache
    def load(name: str) -> Model:
        model = load_model(name, track)
        model.to(device)
        return model

    return defended_model(reference, load, TRACKS.load(track).base) or load(reference)


@functools.lru_cache(maxsize=32)
def classifier_of(reference: str, track: str, prompts: tuple[str | tuple[str, ...], ...], device: str) -> AnyClassifier:
    """Return the float32 classifier of a model for the classes that `prompts` describe. The result is cached."""
    return loaded_model(reference, track, device).classifier(prompts).to(device)


@functools.lru_cache(maxsize=64)
def precise_classifier(
    reference: str, track: str, prompts: tuple[str | tuple[str, ...], ...], device: str, precision: str, logits: str
) -> AnyClassifier:
    """Return the classifier of a model for the classes in `prompts`, in other precisions. The result is cached.

    `precision` is for the image encoder and `logits` is for the logits. Both are names in
    `models.precision.PRECISIONS`.
    """
    return classifier_of(reference, track, prompts, device).in_precision(precision, logits)


def release() -> None:
    """Remove all models and classifiers from the cache. This frees memory, and later calls read changed files again."""
    precise_classifier.cache_clear()
    classifier_of.cache_clear()
    loaded_model.cache_clear()
    gc.collect()


def expect_weights(reference: str) -> None:
    """Raise UserError if a model reference has a test-time defense.

    Some commands use only the weights of a model and call this function first.
    """
    parsed = checked_reference(reference)
    if parsed.defense:
        raise UserError(
            f"{reference!r} has a test-time defense, but this command accepts only models without one: give"
            f" {str(parsed.model)!r}, or use `vlmbench run`, which accepts test-time defenses"
        )
