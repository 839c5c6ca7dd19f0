"""Tests of fine-tuning: trained weights, log, checkpoints, resumed trainings and several processes."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.progress import ignore_progress
from robustbench_vlm.datasets.mini import SCENES
from robustbench_vlm.defenses.agft import AGFT
from robustbench_vlm.defenses.base import Schedule
from robustbench_vlm.defenses.gladiator import GLADIATOR
from robustbench_vlm.defenses.tecoa import TECOA
from robustbench_vlm.models.classifier import Model, load_model
from robustbench_vlm.models.mini import MINI
from robustbench_vlm.training.data import TrainingImages, in_hashed_order
from robustbench_vlm.training.distributed import Processes
from robustbench_vlm.training.finetune import Runtime, _check_processes, finetune
from robustbench_vlm.training.job import Job
from robustbench_vlm.training.log import Log, Row, read_log

CPU = Processes("cpu")


def _model() -> Model:
    torch.manual_seed(0)
    return Model("random", "0", MINI.build().eval().requires_grad_(False), MINI)


def _images(count: int) -> TrainingImages:
    return in_hashed_order(SCENES.open()).slice(0, count)


def _job(**changes: object) -> Job:
    schedule = Schedule("adamw", lr=1e-3, weight_decay=0.0, batch_size=8, epochs=2, warmup=2)
    job = Job(AGFT, schedule, _model(), SCENES, _images(32), eps=Fraction(8, 255))
    return dataclasses.replace(job, **changes)  # type: ignore[arg-type]


def _train(job: Job, folder: Path, save_every: int = 1) -> tuple[torch.nn.Module, list[Row]]:
    visual, _ = finetune(job, Runtime(folder, CPU, save_every), ignore_progress)
    return visual, read_log(folder / "log.csv")


def test_training_changes_only_the_student(tmp_path: Path) -> None:
    job = _job()
    before = {key: value.clone() for key, value in job.model.network.state_dict().items()}
    visual, _ = _train(job, tmp_path)
    after = job.model.network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    moved = [key for key, value in visual.state_dict().items() if not torch.equal(value, before[f"visual.{key}"])]
    assert "conv1.weight" in moved and "attnpool.c_proj.weight" in moved
    assert not [key for key in moved if "running" in key]


def test_training_lowers_the_logged_loss(tmp_path: Path) -> None:
    schedule = Schedule("adamw", lr=2e-3, weight_decay=0.0, batch_size=16, epochs=60, warmup=2)
    _, rows = _train(_job(defense=TECOA, schedule=schedule, images=_images(16), eps=Fraction(0)), tmp_path, 1000)
    assert rows[-1].loss < rows[0].loss - 0.2
    assert [row.step for row in rows] == [20, 40, 60]


def test_the_logged_accuracies_are_those_of_the_batch(tmp_path: Path) -> None:
    schedule = Schedule("sgd", lr=0.0, weight_decay=0.0, batch_size=32, epochs=1, warmup=0)
    model, rows = load_model("clip", "mini"), {}
    for eps in (Fraction(0), Fraction(8, 255)):
        _, (rows[eps],) = _train(_job(model=model, schedule=schedule, eps=eps), tmp_path / str(eps.numerator))
    images = _images(32)
    guesses = model.classifier(SCENES.prompts)(images.read(range(32)).float() / 255).argmax(dim=1)
    expected = (guesses == images.labels).float().mean().item()
    assert [row.clean for row in rows.values()] == [expected, expected] and expected > 0.5
    assert rows[Fraction(0)].robust == expected and rows[Fraction(8, 255)].robust < expected


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_bfloat16_changes_the_loss_slightly(tmp_path: Path, precision: str) -> None:
    _, rows = _train(_job(precision=precision), tmp_path)
    _, exact = _train(_job(), tmp_path / "exact")
    assert (rows[-1].loss == exact[-1].loss) == (precision == "float32")
    assert rows[-1].loss == pytest.approx(exact[-1].loss, rel=0.05)


def test_a_non_finite_loss_stops_the_training_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    bad = dataclasses.replace(AGFT, loss=lambda context, images: AGFT.loss(context, images) * float("nan"))
    with pytest.raises(UserError, match=r"step 0, not a finite number: lower the learning rate.*no checkpoint"):
        _train(_job(defense=bad), tmp_path)
    # The loss is finite for four steps, half of the training.
    calls: list[int] = []

    def later(context: object, images: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return AGFT.loss(context, images) * (float("nan") if len(calls) > 4 else 1.0)  # type: ignore[arg-type]

    with pytest.raises(
        UserError, match=r"step 4, not a finite number: lower the learning rate.*is the last checkpoint"
    ):
        _train(_job(defense=dataclasses.replace(AGFT, loss=later)), tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 4 and all(torch.isfinite(value).all() for value in state["tower"].values())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_non_finite_weights_are_not_saved(tmp_path: Path, optimizer: str) -> None:
    schedule = dataclasses.replace(_job().schedule, optimizer=optimizer, lr=1e38, warmup=0)
    with pytest.raises(UserError, match=r"a weight is not a finite number|loss is (nan|inf)"):
        _train(_job(schedule=schedule), tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize("spoil", ["other", "cut", "garbage"])
def test_a_damaged_or_foreign_checkpoint_is_refused(tmp_path: Path, spoil: str) -> None:
    _train(_job(), tmp_path)
    file = tmp_path / "checkpoint.pt"
    if spoil == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    if spoil == "garbage":
        file.write_bytes(b"hello")
    with pytest.raises(
        UserError, match=r"other settings.*--no-resume" if spoil == "other" else "not a complete checkpoint"
    ):
        _train(_job(seed=1 if spoil == "other" else 0), tmp_path)


def test_a_resumed_log_has_every_row_once(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    rows = [Row(step, 1.0, 0.5, 0.25, 1e-3, step / 10) for step in (20, 40, 60)]
    log = Log(path, 0)
    for row in rows:
        log.add(row)
    with path.open("a") as file:
        file.write("80,1.0,0.")
    Log(path, 40).add(rows[2])
    assert read_log(path) == rows


def test_too_few_images_and_unknown_precisions_are_refused() -> None:
    with pytest.raises(UserError, match="4 images do not fill a batch of 8"):
        _job(images=_images(4))
    with pytest.raises(UserError, match="float32, bfloat16"):
        _job(precision="float16")


_DRIVER = """
import dataclasses, sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_finetune import finetuning_in_double, finetuning_to_file
torch.set_num_threads(1)
{"double": finetuning_in_double, "file": finetuning_to_file}[sys.argv[3]](Path(sys.argv[1]))
"""


def finetuning_to_file(folder: Path) -> None:
    """Train with a checkpoint after every step, and write the trained weights to a file."""
    visual, _ = finetune(_job(), Runtime(folder, CPU, 1), ignore_progress)
    torch.save(visual.state_dict(), folder / "final.pt")


def finetuning_in_double(folder: Path) -> None:
    """Train with the defense whose loss has a term of the whole batch, and log every step."""
    job = _job(defense=GLADIATOR)
    job.model.network.double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("robustbench_vlm.training.log._LOG_EVERY", 1)
        finetune(job, Runtime(folder, CPU, 3), ignore_progress)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let trainings in this process use one thread, like those in other processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _start(folder: Path, mode: str, processes: int = 0) -> subprocess.Popen[bytes]:
    driver = folder.parent / "driver.py"
    driver.write_text(_DRIVER)
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes else []
    return subprocess.Popen(
        [sys.executable, *launch, str(driver), str(folder), str(Path(__file__).parent), mode],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_twice_killed_and_resumed_training_gives_equal_weights(tmp_path: Path, one_thread: None) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    finetuning_to_file(whole)
    for last in (1, 3):
        process, deadline = _start(broken, "file"), time.monotonic() + 300
        while _steps(broken) < last and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL and not (broken / "final.pt").exists()
        assert _steps(broken) >= last
    finetuning_to_file(broken)
    first, second = (torch.load(folder / "final.pt", weights_only=True) for folder in (whole, broken))
    assert all(torch.equal(first[key], second[key]) for key in first)


def _steps(folder: Path) -> int:
    file = folder / "checkpoint.pt"
    return int(torch.load(file, weights_only=True)["step"]) if file.exists() else 0


def test_two_processes_have_the_losses_of_one(tmp_path: Path, one_thread: None) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    finetuning_in_double(folders[0])
    assert _start(folders[1], "double", processes=2).wait(timeout=240) == 0
    curves = [read_log(folder / "log.csv") for folder in folders]
    assert len(curves[0]) == len(curves[1]) == 8
    for one, two in zip(*curves, strict=True):
        assert two.loss == pytest.approx(one.loss, rel=1e-9) and (two.clean, two.robust) == (one.clean, one.robust)


def test_more_processes_than_images_in_a_batch_are_refused() -> None:
    too_many = types.SimpleNamespace(count=9, agree=lambda number: True)
    with pytest.raises(UserError, match="9 processes cannot share a batch of 8"):
        _check_processes(_job(), too_many, 0)  # type: ignore[arg-type]
    different = types.SimpleNamespace(count=2, agree=lambda number: False)
    with pytest.raises(UserError, match="different checkpoints"):
        _check_processes(_job(), different, 0)  # type: ignore[arg-type]


def test_the_identity_of_a_training_depends_on_its_images() -> None:
    one, other = _job(), _job(images=in_hashed_order(SCENES.open()).slice(32, 64))
    assert one.identity != other.identity and one.identity == _job().identity
