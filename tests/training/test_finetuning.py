"""The trainer: what moves, what stays, and the same end after any interruption."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from robustbench_vlm.datasets.rendered import SCENES
from robustbench_vlm.defenses import DEFENSES
from robustbench_vlm.defenses.agft import AGFT
from robustbench_vlm.defenses.defense import Context, InnerAttack, Schedule
from robustbench_vlm.defenses.tecoa import TECOA
from robustbench_vlm.errors import UserError
from robustbench_vlm.models.clip import ImageEncoder, Model
from robustbench_vlm.models.folding import folded
from robustbench_vlm.models.mini import MINI
from robustbench_vlm.randomness import sample_keys
from robustbench_vlm.threats import Threat, distance
from robustbench_vlm.training.finetuning import Job, finetune, inner_attack


def _model() -> Model:
    torch.manual_seed(0)
    return Model("random", "0", MINI.build().eval().requires_grad_(False), MINI)


def _job(**changes: object) -> Job:
    schedule = Schedule("adamw", rate=1e-3, weight_decay=0.0, batch=8, epochs=2, warmup=2)
    job = Job(AGFT, schedule, _model(), SCENES, pictures=32, eps=Fraction(8, 255), save_every=1)
    return dataclasses.replace(job, **changes)  # type: ignore[arg-type]


def _context(model: Model) -> Context:
    student, teacher = ImageEncoder(folded(model.network.visual), MINI).eval(), model.encoder
    images = SCENES.open().read(range(6)).float() / 255
    text = model.text_features(SCENES.prompts[:20])
    clean, towers = teacher(images).detach(), (student, teacher)
    return Context(
        images, torch.arange(6), *towers, clean, text, AGFT.settings, *(tower.dense for tower in towers)
    )  # fmt: skip


@pytest.mark.parametrize("name", DEFENSES.names())
def test_the_inner_attack_raises_the_loss_inside_the_ball(name: str) -> None:
    defense, context, threat = DEFENSES.load(name), _context(_model()), Threat("Linf", Fraction(8, 255))
    context = dataclasses.replace(context, settings=defense.settings)
    adversarial = inner_attack(context, defense.inner, threat, sample_keys(0, "t", list("abcdef")))
    assert (distance(threat, context.images, adversarial) <= 8 / 255 + 1e-6).all()
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    with torch.no_grad():
        before, after = defense.loss(context, context.images), defense.loss(context, adversarial)
    assert (after > before).all()


def test_the_inner_attack_is_the_sample_s_own() -> None:
    context, threat, keys = _context(_model()), Threat("Linf", Fraction(8, 255)), sample_keys(0, "t", list("abcdef"))
    whole = inner_attack(context, AGFT.inner, threat, keys)
    alone = dataclasses.replace(
        context, images=context.images[2:3], labels=context.labels[2:3], teacher_clean=context.teacher_clean[2:3]
    )
    difference = (inner_attack(alone, AGFT.inner, threat, keys[2:3]) - whole[2:3]).abs()
    # A sign may flip where the gradient is zero to rounding; nowhere else.
    assert (difference > 1e-6).float().mean() < 0.01


def test_the_heavy_ball_goes_on_where_the_gradient_is_gone() -> None:
    slope = torch.tensor([1.0, -1.0, 1.0]).view(1, 3, 1, 1)
    context = dataclasses.replace(_context(_model()), images=torch.full((6, 3, 32, 32), 0.5))
    calls = []

    def loss(context: Context, images: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return (images * slope * (len(calls) == 1)).sum(dim=(1, 2, 3))

    threat, keys = Threat("Linf", Fraction(8, 255)), sample_keys(0, "t", list("abcdef"))
    ends = {}
    for momentum in (0.0, 0.9):
        calls.clear()
        inner = InnerAttack(loss, steps=3, step_size=Fraction(1), momentum=momentum)
        ends[momentum] = inner_attack(context, inner, threat, keys) - 0.5
    assert torch.allclose(ends[0.9], (8 / 255 * slope).expand(6, 3, 32, 32), atol=1e-6)
    assert (ends[0.0].abs() < 8 / 255 - 1e-6).any()


def test_weights_get_no_gradient_inside_the_attack() -> None:
    context = _context(_model())
    context.student.requires_grad_(True)  # type: ignore[attr-defined]
    inner_attack(context, AGFT.inner, Threat("Linf", Fraction(8, 255)), sample_keys(0, "t", list("abcdef")))
    assert all(parameter.grad is None for parameter in context.student.parameters())  # type: ignore[attr-defined]


def test_only_the_student_moves(tmp_path: Path) -> None:
    job = _job()
    before = {key: value.clone() for key, value in job.model.network.state_dict().items()}
    visual = finetune(job, tmp_path, lambda line: None)
    after = job.model.network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    moved = [key for key, value in visual.state_dict().items() if not torch.equal(value, before[f"visual.{key}"])]
    assert "conv1.weight" in moved and "attnpool.c_proj.weight" in moved
    assert not [key for key in moved if "running" in key]


def test_training_lowers_the_loss_on_what_it_sees(tmp_path: Path) -> None:
    lines: list[str] = []
    schedule = Schedule("adamw", rate=2e-3, weight_decay=0.0, batch=16, epochs=60, warmup=2)
    job = _job(defense=TECOA, schedule=schedule, pictures=16, eps=Fraction(0), save_every=1000)
    finetune(job, tmp_path, lines.append)
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses[-1] < losses[0] - 0.2


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    bad = dataclasses.replace(AGFT, loss=lambda context, images: AGFT.loss(context, images) * float("nan"))
    finetune(_job(schedule=dataclasses.replace(_job().schedule, epochs=1)), tmp_path, lambda line: None)
    good = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(UserError, match="lower the rate"):
        finetune(_job(defense=bad), tmp_path, lambda line: None)
    assert (tmp_path / "checkpoint.pt").read_bytes() == good


_DRIVER = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_finetuning import _job
from robustbench_vlm.training.finetuning import finetune
torch.set_num_threads(1)
visual = finetune(_job(), Path(sys.argv[1]), print)
torch.save(visual.state_dict(), Path(sys.argv[1]) / "final.pt")
"""


def _start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", _DRIVER, str(folder), str(Path(__file__).parent)])


def test_a_killed_training_ends_in_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    assert _start(whole).wait(timeout=120) == 0
    process, deadline = _start(broken), time.monotonic() + 120
    while not (broken / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (broken / "final.pt").exists()
    assert _start(broken).wait(timeout=120) == 0
    first, second = (torch.load(folder / "final.pt", weights_only=True) for folder in (whole, broken))
    assert all(torch.equal(first[key], second[key]) for key in first)
