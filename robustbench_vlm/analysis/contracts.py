"""Check the contracts of registered models, datasets, attacks, defenses and tracks (`vlmbench check`).

A contract is a property that all registered objects of one kind must have. For example, the samples of every dataset
have unique ids. Contracts apply to the objects of this package and of plugins.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from robustbench_vlm.analysis.attack_contracts import check_attack, linear_classifier
from robustbench_vlm.analysis.check_result import CheckResult
from robustbench_vlm.analysis.model_checks import measure_model
from robustbench_vlm.attacks.base import Batch
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.core.registry import unknown
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.datasets.base import Dataset, Prompt, Source
from robustbench_vlm.datasets.published.local_copy import prepare_dataset
from robustbench_vlm.defenses import DEFENSES
from robustbench_vlm.defenses.base import Defense, LossContext
from robustbench_vlm.engine.model_cache import loaded_model
from robustbench_vlm.models.card import find_card
from robustbench_vlm.models.in_memory import InMemoryModel
from robustbench_vlm.models.open_clip import load_architecture
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.protocols.base import Protocol
from robustbench_vlm.test_time.base import TestTimeDefense
from robustbench_vlm.test_time.defended_model import DefendedModel
from robustbench_vlm.tracks import TRACKS, Track

IMAGES = 8
"""Number of images of a dataset that a contract reads."""


def check(kind: str, name: str, *, track: str = "mini", device: str = "") -> list[CheckResult]:
    """Check the registered object `name` against every contract of its `kind`, such as "dataset".

    Models are looked up on `track` and measured on `device`: "cpu", "cuda", or "" for a GPU if there is one.

    Raises UserError for an unknown kind or name, and if the object cannot be loaded.
    """
    if kind not in CONTRACTS:
        raise UserError(unknown("kind", kind, CONTRACTS))
    if kind == "model":
        return check_model(name, track, device=device)
    return list(CONTRACTS[kind](name, track))


def check_model(model: str | Path | InMemoryModel, track: str = "mini", *, device: str = "") -> list[CheckResult]:
    """Measure the contracts of a model: preprocessing, gradient, repeatability, memory and speed.

    The command `vlmbench check model` does the same. For ViT-B/32, this takes less than a minute on one CPU core.

    Args:
        model: A name or reference that `load_model` accepts, or a model that `zero_shot` returned.
        track: The track in which a name is searched. Its first dataset gives the images and the prompts.
        device: "cpu" or "cuda". "" uses a GPU if there is one.

    Raises:
        UserError: The model cannot be loaded, or one image does not fit into the memory.
    """
    batch, prompts = first_images(TRACKS.load(track))
    return measure_model(model, batch, prompts, track=track, device=device)


def _dataset(name: str, track: str) -> Iterator[CheckResult]:
    dataset: Dataset = prepare_dataset(DATASETS.load(name), IMAGES)
    yield CheckResult("the dataset has the name under which it is registered", dataset.name == name, dataset.name)
    yield CheckResult("every class has a unique prompt", len(set(dataset.prompts)) == len(dataset.classes))
    source = dataset.open()
    yield CheckResult("ids are unique", len(set(source.ids)) == len(source.ids), f"{len(source.ids)} samples")
    labels = set(source.labels)
    yield CheckResult("labels are class indices", labels <= set(range(len(dataset.classes))), f"{len(labels)} labels")
    yield CheckResult("every class has samples", len(labels) == len(dataset.classes), f"{len(dataset.classes)} classes")
    yield from _pixels(dataset, source)


def _pixels(dataset: Dataset, source: Source) -> Iterator[CheckResult]:
    step = 1 if dataset.published else max(1, len(source.ids) // IMAGES)
    chosen = list(range(0, len(source.ids), step))[:IMAGES]
    images = source.read(chosen)
    yield CheckResult(
        "images are uint8 [B, 3, H, W]",
        images.dtype == torch.uint8 and images.dim() == 4 and images.shape[:2] == (len(chosen), 3),
        f"{images.dtype} {tuple(images.shape)}",
    )
    again = dataset.open().read(chosen)
    yield CheckResult("the dataset returns the same images when it is read again", torch.equal(images, again))
    alone = torch.cat([source.read([index]) for index in reversed(chosen)]).flip(0)
    yield CheckResult("an image depends neither on the order of images nor on other images", torch.equal(images, alone))
    yield CheckResult("images differ", len({image.numpy().tobytes() for image in images}) > 1)


def _track(name: str, track: str) -> Iterator[CheckResult]:
    found: Track = TRACKS.load(name)
    for dataset in filter(None, (*found.datasets, found.training, *found.training_datasets)):
        yield _loads("dataset", dataset, DATASETS.load)
    for protocol in found.protocols:
        yield _loads("protocol", protocol, PROTOCOLS.load)
    yield _loads("architecture", found.architecture, load_architecture)
    yield _loads("undefended model", found.base, lambda base: _names_a_model(base, name))
    yield CheckResult(
        "the training set is not an evaluation dataset", found.training not in found.datasets, found.training
    )
    yield CheckResult(
        "the standard eps of the track is one of its evaluated radii",
        found.standard_eps in found.eps,
        str(found.standard_eps),
    )


def _names_a_model(reference: str, track: str) -> None:
    """Raise UserError if the track has no model with the name or path `reference`."""
    load_architecture(find_card(reference, track).architecture)


def _defense(name: str, track: str) -> Iterator[CheckResult]:
    defense: Defense = DEFENSES.load(name)
    context = example_loss_context(defense)
    images = context.images.requires_grad_()
    losses = defense.loss(context, images)
    shape = tuple(losses.shape)
    yield CheckResult(
        "the loss is one finite number per sample", shape == (len(images),) and _finite(losses), f"{shape}"
    )
    part = dataclasses.replace(
        context,
        **{field: getattr(context, field)[1:2] for field in ("images", "labels", "keys")},
        teacher_clean=lambda: context.teacher_clean()[1:2],
    )
    own = defense.inner.loss if defense.batchwise else defense.loss
    statement = (
        "in the inner attack, the loss of a sample does not depend on the other samples of the batch"
        if defense.batchwise
        else "the loss of a sample does not depend on the other samples of the batch"
    )
    yield CheckResult(statement, torch.allclose(own(part, part.images), own(context, images)[1:2]))
    (gradient,) = torch.autograd.grad(defense.inner.loss(context, images).sum(), images)
    moved = bool(gradient.flatten(1).abs().amax(dim=1).min() > 0)
    yield CheckResult("the inner attack's loss has a gradient at every image", moved and _finite(gradient))
    yield _names_its_source(defense)


def _test_time_defense(name: str, track: str) -> Iterator[CheckResult]:
    found: Track = TRACKS.load(track)
    model = loaded_model(f"{name}+{found.base}", track, "cpu")
    assert isinstance(model, DefendedModel)
    batch, prompts = first_images(found)
    # This check uses float64, because float32 rounding depends on the batch size.
    classifier, images = copy.deepcopy(model.classifier(prompts)).double(), batch.images.double()
    before = torch.get_rng_state()
    logits = classifier.of_samples(batch.keys)
    with torch.no_grad():
        scores, again = logits(images), logits(images)
        alone = torch.cat([logits.select(row)(images[row]) for row in torch.arange(len(images)).flip(0).split(1)]).flip(
            0
        )
    shape, expected = tuple(scores.shape), (len(images), len(prompts))
    yield CheckResult(
        "the defended model returns one finite logit per class for every image",
        shape == expected and _finite(scores),
        f"{shape}",
    )
    yield CheckResult("the defense gives the same logits twice", torch.equal(scores, again))
    yield CheckResult(
        "the logits of an image do not depend on the other images of the batch",
        torch.allclose(scores, alone, rtol=1e-6, atol=1e-8),
    )
    for mode in model.defense.gradient_modes:
        leaf = images.clone().requires_grad_()
        output = logits.with_gradient(mode)(leaf)
        same = torch.allclose(output.detach(), scores, rtol=1e-6, atol=1e-8)
        yield CheckResult(f"the gradient mode {mode.name} does not change the logits", same)
        (gradient,) = torch.autograd.grad(output.square().sum(), leaf)
        moved = bool(gradient.flatten(1).abs().amax(dim=1).min() > 0)
        yield CheckResult(f"the logits have a gradient at every image ({mode.name})", moved and _finite(gradient))
    yield CheckResult("the defense does not change torch's random state", torch.equal(before, torch.get_rng_state()))
    yield _names_its_source(model.defense)


def _names_its_source(made: Defense | TestTimeDefense) -> CheckResult:
    is_unpublished = bool(made.fidelity) and not made.paper
    detail = "no paper: give the URL of the paper as `paper` when it is published" if is_unpublished else made.paper
    name = "the defense states its paper and its fidelity"
    return CheckResult(name, bool(made.fidelity), detail, is_unusual=is_unpublished)


def _loads(kind: str, name: str, load: Callable[[str], object]) -> CheckResult:
    statement = f"the {kind} {name!r} exists"
    try:
        load(name)
    except UserError as error:
        return CheckResult(statement, False, str(error))
    return CheckResult(statement, True)


def _finite(images: Tensor) -> bool:
    return bool(torch.isfinite(images).all())


def first_images(track: Track) -> tuple[Batch, tuple[Prompt, ...]]:
    """Return images of a track's first dataset, float32 [N, 3, H, W] in [0, 1], and the prompts of this dataset.

    The images are synthetic if the track does not define datasets, or if its first dataset must be downloaded.
    """
    if not track.datasets or DATASETS.load(track.datasets[0]).published:
        synthetic = linear_classifier(Threat(track.norm, track.standard_eps), num_classes=5)[1]
        return synthetic, tuple(f"a photo of {thing}." for thing in ("a cat", "a dog", "a ship", "a tree", "bread"))
    protocol: Protocol = PROTOCOLS.load(track.protocols[0])
    dataset = protocol.adapt_dataset(DATASETS.load(track.datasets[0]))
    source = dataset.open()
    chosen = protocol.select(source.ids, source.labels)[:IMAGES]
    images = source.read(chosen).to(torch.float32) / 255
    labels = torch.tensor([source.labels[index] for index in chosen])
    keys = sample_keys(0, dataset.name, [source.ids[index] for index in chosen])
    num_classes = torch.full_like(labels, len(dataset.classes))
    batch = Batch(images, labels, keys, Threat(track.norm, track.standard_eps), num_classes)
    return batch, dataset.prompts


def example_loss_context(defense: Defense) -> LossContext:
    """Return an example input for the losses of a defense.

    It has 4 images, float64 [4, 3, 8, 8] in [0, 1], 5 classes, and linear encoders to float64 features [4, 6].
    """
    random = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3 * 8 * 8, 6, generator=random, dtype=torch.float64)
    images = torch.rand(4, 3, 8, 8, generator=random, dtype=torch.float64)
    text = nn.functional.normalize(torch.randn(5, 6, generator=random, dtype=torch.float64), dim=1)
    places = torch.randn(2, 3 * 8 * 8, 4 * 6, generator=random, dtype=torch.float64)

    def dense(encoder: Tensor, places: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        return lambda images: (images.flatten(1) @ encoder, (images.flatten(1) @ places).unflatten(1, (4, 6)))

    return LossContext(
        images=images,
        labels=torch.tensor([0, 4, 2, 2]),
        keys=sample_keys(0, "contract", list("abcd")),
        student=lambda inputs: inputs.flatten(1) @ student,
        teacher=lambda inputs: inputs.flatten(1) @ teacher,
        teacher_clean=lambda: images.detach().flatten(1) @ teacher,
        text_features=text,
        settings=defense.settings,
        student_dense=dense(student, places[0]),
        teacher_dense=dense(teacher, places[1]),
    )


CONTRACTS: Mapping[str, Callable[[str, str], Iterable[CheckResult]]] = {
    "model": check_model,
    "dataset": _dataset,
    "attack": check_attack,
    "defense": _defense,
    "test-time-defense": _test_time_defense,
    "track": _track,
}
"""For each kind of registered object, the function that checks its contracts. The arguments of the function are the
name of an object and a track."""

KINDS = tuple(CONTRACTS)
"""Names of the kinds of registered objects that have contracts."""
