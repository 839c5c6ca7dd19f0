"""Tests of the details of released code that the recipes with @code follow, against hand-computed cases."""

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from robustbench_vlm.cli.main import run_command
from robustbench_vlm.core import random as randomness
from robustbench_vlm.core.progress import ignore_progress
from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.datasets.image_folder import training_folder
from robustbench_vlm.datasets.mini import SCENES
from robustbench_vlm.defenses import DEFENSES
from robustbench_vlm.defenses.base import Defense, InnerAttack, LossContext, Resize, Schedule
from robustbench_vlm.defenses.tecoa import TECOA
from robustbench_vlm.models.card import read_card
from robustbench_vlm.models.classifier import load_model
from robustbench_vlm.models.fast_resnet import folded
from robustbench_vlm.models.image_encoder import ImageEncoder
from robustbench_vlm.training import log
from robustbench_vlm.training.data import in_hashed_order
from robustbench_vlm.training.distributed import Processes
from robustbench_vlm.training.finetune import Runtime, finetune
from robustbench_vlm.training.inner_attack import inner_attack, input_gradient
from robustbench_vlm.training.optim import lr_at
from robustbench_vlm.training.request import TrainingRequest, _transform, make_job

CODE = [name for name in DEFENSES.names() if name.endswith("@code")]
PAGE = Path(__file__).parents[2] / "docs" / "training.md"


def _context(images: Tensor, student: Callable[[Tensor], Tensor], text: Tensor, scale: float) -> LossContext:
    keys = sample_keys(0, "t", [str(number) for number in range(len(images))])
    labels = torch.zeros(len(images), dtype=torch.int64)
    return LossContext(images, labels, keys, student, student, lambda: student(images), text, {"scale": scale})


def _noise(context: LossContext, eps: Fraction) -> Tensor:
    return (randomness.uniform(context.keys, 0, context.images.shape[1:]) * 2 - 1) * float(eps)


# The learning rate.


def test_code_that_updates_the_learning_rate_after_the_step_takes_the_first_step_at_the_full_rate() -> None:
    before = Schedule("adamw", lr=1.0, weight_decay=0.0, batch_size=1, steps=40, warmup=4)
    after = dataclasses.replace(before, first_lr="full")
    assert [lr_at(before, 40, step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [lr_at(after, 40, step) for step in range(5)] == [1.0, 0.5, 0.75, 1.0, 1.0]
    assert all(lr_at(before, 40, step) == lr_at(after, 40, step) for step in range(1, 40))


@pytest.mark.parametrize(("name", "peak"), [("fare", 1e-5), ("tecoa-fare", 1e-5), ("sim-clip", 1e-3)])
def test_the_first_learning_rates_of_fare_and_the_recipes_of_its_code(name: str, peak: float) -> None:
    warm, full = (DEFENSES.load(each).schedule for each in (name, f"{name}@code"))
    assert [lr_at(warm, warm.steps, step) for step in range(3)] == pytest.approx([peak * n / 1400 for n in (1, 2, 3)])
    expected = [peak, peak * 2 / 1400, peak * 3 / 1400]
    assert [lr_at(full, full.steps, step) for step in range(3)] == pytest.approx(expected)


@pytest.mark.parametrize(("first_lr", "rates"), [("warm-up", [0.25, 0.5, 0.75]), ("full", [1.0, 0.5, 0.75])])
def test_the_optimizer_takes_the_steps_at_these_learning_rates(
    first_lr: str, rates: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "_LOG_EVERY", 1)
    job = make_job(TrainingRequest("tecoa", "mini", num_images=8, settings={"batch_size": 8, "steps": 4, "warmup": 1}))
    schedule = dataclasses.replace(job.schedule, lr=1e-6, warmup=4, steps=16, first_lr=first_lr)
    job = dataclasses.replace(job, schedule=schedule)
    finetune(job, Runtime(tmp_path, Processes("cpu")), ignore_progress)
    rows = log.read_log(tmp_path / "log.csv")
    assert [row.lr for row in rows[:3]] == pytest.approx([1e-6 * rate for rate in rates])


# The random start.


@pytest.mark.parametrize("clamp", [True, False])
def test_only_an_unclamped_start_gives_the_first_pass_pixels_outside_the_range(clamp: bool) -> None:
    passes: list[Tensor] = []

    def loss(context: LossContext, images: Tensor) -> Tensor:
        passes.append(images.detach())
        return images.sum(dim=(1, 2, 3))

    images = torch.cat([torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)])
    context, eps = _context(images, loss, torch.eye(2), 1.0), Fraction(4, 255)
    inner = InnerAttack(loss, steps=3, step_size=Fraction(1, 255), step_unit="pixel range", clamp_start=clamp)
    final = inner_attack(context, inner, Threat("Linf", eps))
    start = images + _noise(context, eps)
    outside = ((passes[0] < 0) | (passes[0] > 1)).float().mean().item()
    assert torch.equal(passes[0], start.clamp(0, 1) if clamp else start)
    assert outside == 0 if clamp else 0.3 < outside < 0.7
    # A black pixel with the noise -3/255 is at 0 after the first step of 1/255. With a clamped start, it is at 1/255.
    assert torch.allclose(passes[1][:2], (passes[0][:2] + 1 / 255).clamp(0, 4 / 255), atol=1e-7)
    assert all(points.min() >= 0 and points.max() <= 1 for points in (*passes[1:], final))


# The step size.


@pytest.mark.parametrize("pixels", [1, 2, 4])
def test_a_step_of_fare_is_one_grey_level_at_every_eps(pixels: int) -> None:
    eps = Fraction(pixels, 255)
    quarter = InnerAttack(TECOA.loss, steps=10, step_size=Fraction(1, 4))
    for name in ("fare", "fare@code", "tecoa-fare", "tecoa-fare@code", "sim-clip", "sim-clip@code"):
        assert DEFENSES.load(name).inner.step(eps) == Fraction(1, 255)
    assert quarter.step(eps) == Fraction(pixels, 4 * 255)
    for inner, levels in ((DEFENSES.load("fare").inner, 1.0), (quarter, pixels / 4)):
        rising = dataclasses.replace(inner, loss=lambda context, images: images.sum(dim=(1, 2, 3)), steps=1)
        images = torch.full((2, 3, 8, 8), 0.5)
        context = _context(images, lambda x: x.flatten(1), torch.eye(2), 1.0)
        noise = _noise(context, eps)
        moved = inner_attack(context, rising, Threat("Linf", eps)) - images
        assert torch.allclose(moved, (noise + levels / 255).clamp(max=float(eps)), atol=1e-6)


def test_a_track_that_replaces_the_step_size_replaces_its_unit_too() -> None:
    job = make_job(TrainingRequest("fare", "mini", num_images=128))
    assert job.defense.inner.step(job.eps) == job.eps == Fraction(6, 255)


# Half precision and the mean loss.


def _confident(scale: float) -> LossContext:
    """Return a context whose 256 images have logits (scale, 0), so the wrong class has the probability sigmoid(-scale).

    The student is linear: the features are the first two pixels.
    """
    images = torch.full((256, 3, 2, 2), 0.25)
    images[:, 0, 0, 0] = 0.75
    images[:, 0, 0, 1] = 0.0
    weights = torch.zeros(12, 2)
    weights[0, 0] = weights[1, 1] = 1.0
    return _context(images, lambda x: x.flatten(1) @ weights, torch.eye(2), scale)


@pytest.mark.parametrize(
    ("precision", "mean", "is_zero"),
    [("float32", False, False), ("float32", True, False), ("float16", False, False), ("float16", True, True)],
)
def test_the_mean_loss_in_float16_loses_the_gradient_of_confident_images(
    precision: str, mean: bool, is_zero: bool
) -> None:
    # The smallest positive float16 is 2**-24, and smaller numbers than half of it are rounded to 0. The gradient at the
    # logits is the probability p of the wrong class, or p / 256 for the mean.
    scale = 12.2
    p = 1 / (1 + math.exp(scale))
    assert p > 2**-25 > p / 256
    inner = dataclasses.replace(TECOA.inner, precision=precision, mean_loss=mean)
    context, threat = _confident(scale), Threat("Linf", Fraction(1, 255))
    gradient = input_gradient(context, inner, context.images)
    assert gradient.dtype == torch.float32 and bool((gradient == 0).all()) == is_zero
    if not is_zero:
        # The derivative of the cosine with text 1 by the pixel of feature 1 is 1 / |f| = 1 / 0.75.
        expected = scale * p / 0.75 / (256 if mean else 1)
        assert gradient[:, 0, 0, 1] == pytest.approx(expected, rel=0.02)
    # An attack without a gradient returns the random start.
    start = (context.images + _noise(context, threat.eps)).clamp(0, 1)
    moved = not torch.allclose(inner_attack(context, dataclasses.replace(inner, steps=1), threat), start, atol=1e-6)
    assert moved != is_zero


def test_the_share_of_zero_gradients_of_the_bundled_clip() -> None:
    model, source = load_model("clip", "mini"), in_hashed_order(SCENES.open()).slice(0, 128)
    images = source.read(range(128)).float() / 255
    encoder = ImageEncoder(folded(model.network.get_submodule("visual")), model.architecture).eval()
    text = model.text_features(SCENES.prompts)
    context = dataclasses.replace(_context(images, encoder, text, 100.0), labels=source.labels)
    shares = {}
    for precision, mean in (("float32", True), ("float16", False), ("float16", True)):
        inner = dataclasses.replace(TECOA.inner, precision=precision, mean_loss=mean)
        shares[precision, mean] = (input_gradient(context, inner, images) == 0).float().mean().item()
    # Measured: 0, 0.002 and 0.075. The page on training has these numbers.
    assert shares["float32", True] == 0 < shares["float16", False] < 0.01 < shares["float16", True] < 0.2


def test_two_processes_average_over_the_whole_batch() -> None:
    context = _confident(5.0)
    half = dataclasses.replace(
        context, **{name: getattr(context, name)[:128] for name in ("images", "labels", "keys")}, total=lambda x: 2 * x
    )
    inner = dataclasses.replace(TECOA.inner, mean_loss=True)
    whole, part = (input_gradient(each, inner, each.images) for each in (context, half))
    assert torch.equal(whole[:128], part)


# The transform.


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("tecoa@code", (256, "bilinear")),
        ("pmg-aft@code", (256, "bilinear")),
        ("tga-zsr@code", (256, "bilinear")),
        ("agft@code", (224, "bilinear")),
        ("fare@code", (224, "bicubic")),
    ],
)
def test_the_pixels_of_a_folder_are_those_of_torchvision(name: str, reference: tuple[int, str], tmp_path: Path) -> None:
    generator = numpy.random.default_rng(0)
    sizes = {"a": (64, 64), "b": (300, 200), "c": (225, 500), "d": (224, 224)}
    for number, (label, (width, height)) in enumerate(sizes.items()):
        (tmp_path / label).mkdir()
        image = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype="uint8"))
        exif = Image.Exif()
        exif[0x0112] = 6
        image.convert("L" if number == 1 else "RGB").save(tmp_path / label / "one.jpg", exif=exif)
    resize, interpolation = reference
    expected = transforms.Compose(
        [
            transforms.Resize(resize, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
        ]
    )
    recipe: Defense = DEFENSES.load(name)
    assert recipe.resize
    images = training_folder(tmp_path, "a {}.", 224, _transform(recipe.resize, 224)).open().read(range(4)).float() / 255
    for image, label in zip(images, sizes, strict=True):
        assert torch.equal(image, expected(Image.open(tmp_path / label / "one.jpg").convert("RGB")))
    plain = training_folder(tmp_path, "a {}.", 224).open().read(range(4)).float() / 255
    assert not torch.equal(plain, images)


@pytest.mark.parametrize(("side", "resized"), [(224, 256), (336, 384), (32, 37)])
def test_the_resize_grows_with_the_input_size(side: int, resized: int) -> None:
    assert str(_transform(Resize("bilinear", Fraction(8, 7)), side)) == (
        f"shorter side to {resized}, bilinear, centre crop of {side}"
    )


# Identities, the command and the page.


def test_every_detail_changes_the_identity_of_a_training() -> None:
    job = make_job(TrainingRequest("tecoa", "mini", num_images=128))
    inner = {"step_unit": "pixel range", "clamp_start": False, "precision": "float16", "mean_loss": True}
    changed = [
        dataclasses.replace(job.defense, inner=dataclasses.replace(job.defense.inner, **{name: value}))  # type: ignore[arg-type]
        for name, value in inner.items()
    ]
    jobs = [dataclasses.replace(job, defense=defense) for defense in changed]
    jobs.append(dataclasses.replace(job, schedule=dataclasses.replace(job.schedule, first_lr="full")))
    jobs.append(dataclasses.replace(job, transform=_transform(Resize("bilinear"), 32)))
    assert len({job.identity, *(each.identity for each in jobs)}) == len(jobs) + 1
    assert "inner_precision" not in job.account and jobs[2].account["inner_precision"] == "float16"


def test_the_command_trains_a_recipe_with_code_and_the_card_has_its_details(tmp_path: Path) -> None:
    for number in range(8):
        folder = tmp_path / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 50), (30 * number, 0, 99)).save(folder / f"{number}.png")
    command = [
        "train", "tecoa@code", "--images", str(tmp_path / "images"), "--set", "batch_size=4", "--set", "steps=2",
        "--set", "warmup=0", "--device", "cpu", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    assert run_command(command) == 0
    training = read_card(tmp_path / "out" / "tecoa@code.json").training
    assert training["defense"] == "tecoa@code" and training["transform"].startswith("shorter side to 37, bilinear")
    assert training["inner_precision"] == "float16" and training["inner_mean_loss"] is True
    load_model(str(tmp_path / "out" / "tecoa@code.json"), "mini")


@pytest.mark.parametrize("name", CODE)
def test_the_page_has_a_row_for_each_recipe_with_code(name: str) -> None:
    recipe: Defense = DEFENSES.load(name)
    assert recipe.resize
    inner, side = recipe.inner, round(recipe.resize.ratio * 224)
    cells = (
        f"`{name}`",
        "full" if recipe.schedule.first_lr == "full" else "warm-up",
        "clamped" if inner.clamp_start else "not clamped",
        f"{inner.precision}, {'mean' if inner.mean_loss else 'sum'}",
        f"{side}, {recipe.resize.interpolation}",
    )
    assert f"| {' | '.join(cells)} |" in PAGE.read_text()


@pytest.mark.parametrize("name", DEFENSES.names())
def test_the_page_has_every_deviation_of_a_recipe(name: str) -> None:
    page = " ".join(PAGE.read_text().split())
    assert [text for text in DEFENSES.load(name).deviations if text not in page] == []
