"""Measure the contracts of a model: preprocessing, gradient, repeatability, memory and speed.

A contract is a property that every model must have. The robust accuracy of a model without this property is wrong. For
example, gradient attacks fail on a model without a gradient, so its robust accuracy is too high. The images have the
input size of the model.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_vlm.analysis.check_result import CheckResult
from robustbench_vlm.attacks.base import Batch
from robustbench_vlm.attacks.losses import margin
from robustbench_vlm.attacks.projections import L2Ball
from robustbench_vlm.attacks.sanity import BATCH_TOLERANCE, REPEAT_TOLERANCE, are_probabilities, margin_gradient
from robustbench_vlm.core.classifier_interface import Classifier
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.datasets.base import Prompt
from robustbench_vlm.engine.model_cache import AnyClassifier, AnyModel, loaded_model, release
from robustbench_vlm.engine.resources import (
    CPU_BATCH_SIZE,
    MEMORY_SHARE,
    is_out_of_memory,
    run_backward,
    sample_memory,
    with_fitting_batch_size,
)
from robustbench_vlm.models.device import choose_device
from robustbench_vlm.models.hugging_face import pixel_difference
from robustbench_vlm.models.in_memory import InMemoryModel, registered
from robustbench_vlm.models.open_clip import load_architecture
from robustbench_vlm.models.precision import arithmetic
from robustbench_vlm.models.reference import UNPINNED
from robustbench_vlm.models.zero_shot_arguments import ZERO_SHOT_FORMS
from robustbench_vlm.test_time.defended_model import DefendedModel

LARGEST_PIXEL = 4.0
"""Largest accepted absolute value of a normalised pixel. With the means and standard deviations of CLIP, ImageNet and
SigLIP, the value is below 2.7."""
PIXEL_TOLERANCE = 1 / 255
"""Largest accepted difference between the pixels of the model and those of its processor in the library transformers,
in units of the pixel range."""
LARGEST_SCALE, USUAL_SCALES = 1000.0, (1.0, 200.0)
"""Limits of the logit scale. The scale of CLIP and SigLIP is about 100. With a much larger scale, the softmax rounds to
0 and 1."""
TEXT_TOLERANCE = 1e-4
"""Largest accepted difference between the features of a text in a batch and in a separate call."""
GRADIENT_TOLERANCE, USUAL_ERROR = 0.3, 0.1
"""Limits of the relative difference between slopes from autograd and from finite differences. The slopes are along
random directions and along the gradient. The check uses the median difference over the images. It fails above 0.3, and
warns above 0.1."""
ZERO_TOLERANCE = 0.01
"""Largest share of pixels with a gradient of exactly zero that gives no warning."""
_STEPS = (0.1, 0.03, 0.01)
"""L2 norms of the steps of finite differences. For each image, the step with the smallest error is used. Large steps
have an error because models are not linear, and small steps have an error because logits are rounded."""
_ROUNDING = 2.0**-20
"""Rounding error of float32 logits after many layers, as a fraction of the largest logit."""
_FAST_SECONDS = 0.5
"""Longest time in seconds that a fast model needs to classify 4 images. Slower models are measured on only 4 images and
with only one step of finite differences."""
_FEWEST = 4


@dataclass(frozen=True)
class _Subject:
    """The model to check, with its device and the N images for the checks."""

    model: AnyModel
    classifier: AnyClassifier
    """The zero-shot classifier of the model, for these N images."""
    images: Tensor
    """float32 [N, 3, image_size, image_size] in [0.1, 0.9], so that small steps stay in [0, 1]."""
    prompts: tuple[Prompt, ...]
    device: str

    def first(self, count: int) -> "_Subject":
        """Return the same model with only the first `count` images."""
        rows = torch.arange(min(count, len(self.images)))
        return replace(self, classifier=self.classifier.select(rows), images=self.images[:count])


def measure_model(
    model: str | Path | InMemoryModel, batch: Batch, prompts: Sequence[Prompt], *, track: str = "mini", device: str = ""
) -> list[CheckResult]:
    """Measure the contracts of a model.

    Args:
        model: A reference of a model, which is looked up on `track`, or a model from `zero_shot`.
        batch: N images, float32 [N, 3, H, W] in [0, 1]. They are resized to the input size of the model.
        prompts: The prompts of two or more classes.
        track: The track of the reference.
        device: "cpu", "cuda", or "" for a GPU if there is one.

    Raises:
        UserError: The model cannot be loaded, or one image does not fit into the memory.
    """
    if not isinstance(model, str | Path | InMemoryModel):
        raise UserError(
            f"check_model takes a name, another reference or a model made by zero_shot, got {type(model).__name__}:"
            f" write {ZERO_SHOT_FORMS}"
        )
    if isinstance(model, InMemoryModel):
        with registered([model], named=()) as (reference,):
            return measure_model(reference, batch, prompts, track=track, device=device)
    # Cached models are released. The file of a model card may have changed since this process loaded the model.
    release()
    chosen = choose_device(device)
    loaded = loaded_model(str(model), track, chosen)
    side = (loaded.image_size, loaded.image_size)
    images = nn.functional.interpolate(batch.images, side, mode="bilinear").to(chosen) * 0.8 + 0.1
    classifier = loaded.classifier(tuple(prompts)).to(chosen)

    def measure(count: int) -> list[CheckResult]:
        own = classifier.of_samples(batch.keys[:count].to(chosen))
        return list(_checks(_Subject(loaded, own, images[:count], tuple(prompts), chosen)))

    with arithmetic():
        found, _ = with_fitting_batch_size(measure, len(images))
    return found


def _checks(subject: _Subject) -> Iterator[CheckResult]:
    yield from _facts(subject.model)
    yield from _preprocessing(subject)
    begun = time.perf_counter()
    few = subject.first(_FEWEST)
    try:
        logits = _passed(few.classifier, few.images)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        size = "{} x {}".format(*few.images.shape[-2:])
        yield CheckResult("logits", False, f"the model cannot classify images of {size} pixels: {error}")
        return
    is_fast = time.perf_counter() - begun < _FAST_SECONDS
    subject = subject if is_fast else few
    yield from _logits(few, logits)
    if not bool(torch.isfinite(logits).all()):
        # The other checks compare logits. If the logits are NaN, these checks would fail for the same reason.
        return
    scale, (low, high) = subject.classifier.scale, USUAL_SCALES
    yield CheckResult(
        "logit scale", 0 < scale <= LARGEST_SCALE, f"{scale:g}", scale, LARGEST_SCALE, not low <= scale <= high
    )
    yield _text_batch(subject)
    yield from _gradients(subject, _STEPS if is_fast else _STEPS[:1])
    yield from _repeated(subject, range(len(subject.images)) if is_fast else range(1))
    yield from _costs(subject)


def _facts(model: AnyModel) -> Iterator[CheckResult]:
    is_unpinned = model.digest.startswith(UNPINNED)
    advice = ", which does not cover the whole model, so it cannot be submitted" if is_unpinned else ""
    yield CheckResult("loads", True, f"digest {model.digest[:24]}{advice}", is_unusual=is_unpinned)
    if model.card is not None:
        encoders = (model.card.image, model.card.text)
        files = [weights.file for weights in encoders if weights and weights.is_bundled]
        are_safe = all(file.endswith(".safetensors") for file in files)
        yield CheckResult("weights are safetensors", are_safe, ", ".join(files))


def _preprocessing(subject: _Subject) -> Iterator[CheckResult]:
    encoder: Any = subject.classifier.plain.encoder
    mean, std = (getattr(encoder, name).flatten().tolist() for name in ("mean", "std"))
    used = f"mean {_numbers(mean)}, std {_numbers(std)}"
    about = f"{used}, {encoder.image_size} pixels, {getattr(encoder, 'interpolation', 'bicubic')}"
    largest = max(max(abs(each), abs(1 - each)) / scale for each, scale in zip(mean, std, strict=True))
    stated = _stated(subject.model)
    differs = [name for name, own in (("mean", mean), ("std", std)) if not _same(stated.get(name), own)]
    if differs:
        about += "; the model states " + ", ".join(f"{name} {_numbers(stated[name])}" for name in differs)
    # A model card may set another mean and std on purpose, so a difference is no mistake. A model without a card comes
    # from `zero_shot`, which uses the mean and std of the model by default. A difference is then a mistake.
    is_mistake = bool(differs) and subject.model.card is None
    passed = largest <= LARGEST_PIXEL and not is_mistake
    about += f"; pixels up to {largest:.2f}"
    yield CheckResult("preprocessing", passed, about, largest, LARGEST_PIXEL, bool(differs))
    processor = getattr(subject.model, "processor", None)
    if getattr(processor, "image_processor", None) is not None:
        yield _processor(subject.model, processor)


def _processor(model: Any, processor: Any) -> CheckResult:
    """Compare the model's pixels with those of its transformers processor.

    Two images are compared: one of the input size, and one that the processor must shrink.
    """
    side = model.image_size
    try:
        same, larger = (pixel_difference(model, processor, size) for size in (side, side + side // 2))
    except RuntimeError as error:
        return CheckResult("pixels of the processor", True, f"not comparable: {error}", is_unusual=True)
    about = f"differ by {same:.4f} at {side} pixels, by {larger:.4f} if {side + side // 2} pixels are shrunk"
    return CheckResult("pixels of the processor", True, about, same, PIXEL_TOLERANCE, not same <= PIXEL_TOLERANCE)


def _stated(model: AnyModel) -> dict[str, Any]:
    """Return the mean and std in the configuration of the model. The dict is empty if there are none."""
    if isinstance(model, InMemoryModel):
        return {name: value for name, value in model.stated.items() if value is not None}
    plain = model.model if isinstance(model, DefendedModel) else model
    if plain.card is None or plain.card.pretrained:
        return {}
    architecture = load_architecture(plain.card.architecture)
    return {"mean": architecture.mean, "std": architecture.std}


def _same(stated: Sequence[float] | None, used: Sequence[float]) -> bool:
    return stated is None or torch.allclose(torch.tensor(stated), torch.tensor(used), atol=1e-3)


def _logits(subject: _Subject, logits: Tensor) -> Iterator[CheckResult]:
    count, classes = len(subject.images), len(subject.prompts)
    shape, finite = tuple(logits.shape), bool(torch.isfinite(logits).all())
    about = f"{logits.dtype}".removeprefix("torch.") + f" {list(shape)}"
    passed = shape == (count, classes) and logits.dtype == torch.float32 and finite
    wrong = "" if passed else f"; expected float32 {[count, classes]} without NaN"
    if not finite:
        about += f", NaN or infinite for {int((~torch.isfinite(logits).flatten(1).all(dim=1)).sum())} images"
    yield CheckResult("logits", passed, about + wrong)
    if not finite:
        return
    are_wrong = bool(are_probabilities(logits).all())
    yield CheckResult("no probabilities", not are_wrong, "a softmax hides the gradient" if are_wrong else "")
    larger = nn.functional.interpolate(subject.images, scale_factor=1.5)
    other = _passed(subject.classifier, larger)
    sides = "{} x {} pixels".format(*larger.shape[-2:])
    yield CheckResult("images of any size", other.shape == logits.shape, sides)


def _text_batch(subject: _Subject) -> CheckResult:
    """Compare the text features of the prompts in one batch with the features from a separate call for each prompt."""
    together = subject.classifier.plain.text_features
    model = subject.model.model if isinstance(subject.model, DefendedModel) else subject.model
    some = range(min(len(together), _FEWEST))
    alone = torch.cat([model.text_features([subject.prompts[row]]) for row in some]).to(together)
    difference = float((alone - together[: len(alone)]).abs().max())
    about = f"{difference:.1e} from separate calls"
    return CheckResult("text batch", difference <= TEXT_TOLERANCE, about, difference, TEXT_TOLERANCE)


def _gradients(subject: _Subject, steps: Sequence[float]) -> Iterator[CheckResult]:
    """Compare the margin's gradient with central finite differences along one direction for each image."""
    classifier, images = subject.classifier, subject.images
    labels = _passed(classifier, images).argmax(dim=1)
    _, gradient = margin_gradient(classifier, images, labels)
    broken = int((~torch.isfinite(gradient).flatten(1).all(dim=1)).sum())
    if broken:
        yield CheckResult("gradient", False, f"NaN or infinite at {broken} of {len(images)} images")
        return
    zero = float((gradient == 0).float().mean())
    about = f"{zero:.4f} of the pixels"
    is_masked = bool((gradient == 0).flatten(1).all(dim=1).any())
    yield CheckResult(
        "zero gradients", zero <= 0.5 and not is_masked, about, zero, ZERO_TOLERANCE, zero > ZERO_TOLERANCE
    )
    if isinstance(subject.model, DefendedModel):
        # The gradient of a test-time defense may be approximate, so it is not compared with finite differences here.
        # The command `vlmbench check test-time-defense` checks its gradient modes.
        return
    # The slope along a random direction is smaller than the slope along the gradient, by about the square root of the
    # number of pixels. Steps along random directions are therefore larger.
    random = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images)
    along = {
        "random": (L2Ball.direction(random), images[0].numel() ** 0.5 / 10),
        "gradient": (L2Ball.direction(gradient), 1.0),
    }
    errors = {}
    for name, (direction, factor) in along.items():
        slope = (gradient * direction).flatten(1).sum(dim=1)
        tried = [_slope_error(classifier, images, labels, direction, slope, factor * step) for step in steps]
        best = torch.stack(tried).amin(dim=0)
        if bool(best.isfinite().any()):
            errors[name] = float(best[best.isfinite()].median())
    if not errors:
        yield CheckResult("gradient", True, "too small to compare with finite differences", is_unusual=True)
        return
    error = max(errors.values())
    about = ", ".join(f"{each:.4f} ({name} directions)" for name, each in errors.items())
    about = f"{about} from finite differences"
    yield CheckResult("gradient", error <= GRADIENT_TOLERANCE, about, error, GRADIENT_TOLERANCE, error > USUAL_ERROR)


def _slope_error(
    classifier: Classifier, images: Tensor, labels: Tensor, direction: Tensor, slope: Tensor, step: float
) -> Tensor:
    """Return the relative difference between `slope` and a slope from finite differences, float32 [B].

    `slope`, float32 [B], is the slope of the margin of each image along its direction, from autograd. The finite
    difference is central, and `step` is the L2 norm of its step. The relative difference is set to infinity if float32
    rounding of the logits may make it larger than `USUAL_ERROR`.
    """
    above, below = (_passed(classifier, images + sign * step * direction) for sign in (1, -1))
    measured = (margin(above, labels, labels) - margin(below, labels, labels)) / (2 * step)
    size = torch.maximum(measured.abs(), slope.abs()).clamp_min(1e-12)
    noise = _ROUNDING * above.abs().amax(dim=1) / step
    return torch.where(noise <= USUAL_ERROR * size, (measured - slope).abs() / size, torch.inf)


def _repeated(subject: _Subject, rows: range) -> Iterator[CheckResult]:
    """Compare the logits of two equal passes. Also compare the logits of images alone with their logits in a batch."""
    classifier, images = subject.classifier, subject.images
    first, second = _passed(classifier, images), _passed(classifier, images)
    alone = torch.cat([_passed(classifier.select(torch.tensor([row])), images[row : row + 1]) for row in rows])
    largest = float(first.abs().max())
    difference = float((first - second).abs().max()) / largest
    about = "equal bits" if difference == 0 else f"two passes differ by {difference:.1e}"
    yield CheckResult(
        "determinism", difference <= REPEAT_TOLERANCE, about, difference, REPEAT_TOLERANCE, difference > 0
    )
    apart = float((alone - first[: len(alone)]).abs().max()) / largest
    about = f"{apart:.1e} between one image and a batch"
    yield CheckResult("batch independence", apart <= BATCH_TOLERANCE, about, apart, BATCH_TOLERANCE)


def _costs(subject: _Subject) -> Iterator[CheckResult]:
    """Measure the memory of one image and the passes per second."""
    images = subject.images
    forward = _seconds(lambda: _passed(subject.classifier, images), subject.device)
    if not run_backward(subject.classifier, images):
        yield CheckResult("memory", False, "not measured, because the logits have no gradient")
        yield CheckResult("speed", False, f"{len(images) / forward:,.1f} images/s forward; the logits have no gradient")
        return
    memory = sample_memory(subject.classifier, images)
    gradient = _seconds(lambda: sample_memory(subject.classifier, images), subject.device)
    fits = int(MEMORY_SHARE * _free_memory(subject.device) / memory)
    about = f"{memory / 2**20:,.1f} MiB per image, {fits:,} images fit"
    yield CheckResult("memory", fits >= 1, about, is_unusual=fits < CPU_BATCH_SIZE)
    about = f"{len(images) / forward:,.1f} images/s forward, {len(images) / gradient:,.1f} with backward"
    yield CheckResult("speed", True, f"{about}, {subject.device}")


def _passed(classifier: Classifier, images: Tensor) -> Tensor:
    """Return the logits of a forward pass without gradients."""
    with torch.no_grad():
        return classifier(images)


def _seconds(work: Callable[[], object], device: str) -> float:
    """Return the time of one call in seconds."""
    begun = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def _free_memory(device: str) -> int:
    """Return the free memory of a GPU, or the memory of this machine, in bytes."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)
