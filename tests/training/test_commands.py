"""Tests of the commands train and sweep."""

import csv
import json
from fractions import Fraction
from pathlib import Path

import pandas
import pytest

from robustbench_vlm.cli.main import run_command
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.progress import ignore_progress
from robustbench_vlm.models.card import read_card
from robustbench_vlm.models.classifier import load_model
from robustbench_vlm.training.distributed import Processes
from robustbench_vlm.training.finetune import Runtime, train_defense
from robustbench_vlm.training.log import COLUMNS
from robustbench_vlm.training.request import TrainingRequest, make_job


def _runtime(folder: Path) -> Runtime:
    return Runtime(folder, Processes("cpu"))


def _request(**changes: object) -> TrainingRequest:
    values = {"defense": "agft", "track": "mini", "eps": Fraction(8, 255), "epochs": 1, "num_images": 256, **changes}
    return TrainingRequest(**values)  # type: ignore[arg-type]


def test_training_writes_a_card_with_its_settings_and_a_log(tmp_path: Path) -> None:
    path = train_defense(_request(settings={"gamma": 0.5, "lr": 1e-4}), _runtime(tmp_path), ignore_progress)
    card = read_card(path)  # type: ignore[arg-type]
    training = card.training
    assert card.defense == "agft" and training["parent"] == "clip" and training["eps"] == "8/255"
    assert training["settings"]["gamma"] == 0.5 and training["schedule"]["lr"] == 1e-4
    assert training["steps"] == 2 and training["seconds"] > 0 and len(training["fingerprint"]) == 64
    base, trained = load_model("clip", "mini"), load_model(str(path), "mini")
    assert trained.digest != base.digest and card.text.sha256 == base.card.text.sha256  # type: ignore[union-attr]
    log = pandas.read_csv(tmp_path / "log.csv")
    assert tuple(log.columns) == COLUMNS and log.step.tolist() == [2] and 0 <= log.robust[0] <= log.clean[0] <= 1
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_resume_requires_forbids_or_allows_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint to resume"):
        train_defense(_request(), _runtime(tmp_path), ignore_progress, resume=True)
    steps: list[int] = []
    train_defense(_request(), _runtime(tmp_path), ignore_progress)
    (tmp_path / "log.csv").unlink()
    train_defense(_request(), _runtime(tmp_path), lambda progress: steps.append(progress.done), resume=True)
    assert steps == []
    train_defense(_request(seed=1), _runtime(tmp_path), lambda progress: steps.append(progress.done), resume=False)
    assert steps == [1, 2] and (tmp_path / "agft-seed1.json").exists()


def test_a_continued_training_names_its_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "train",
        "tecoa",
        "--num-images",
        "16",
        "--epochs",
        "1",
        "--set",
        "batch_size=8",
        "--out",
        str(tmp_path),
    ]
    assert run_command(arguments) == 0
    assert "--no-resume" not in capsys.readouterr().err
    assert run_command(arguments) == 0
    assert f"the training continues from {tmp_path / 'checkpoint.pt'}; give --no-resume" in capsys.readouterr().err
    assert run_command([*arguments, "--no-resume"]) == 0
    assert "continuing" not in capsys.readouterr().err


def test_a_shortened_warm_up_is_shown_and_in_the_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "agft", "--num-images", "512", "--epochs", "2", "--device", "cpu", "--out", str(tmp_path)]
    assert run_command(command) == 0
    change = "the number of warm-up steps is 2 instead of 100, because the training has only 8 steps"
    card = read_card(tmp_path / "agft.json")
    assert change in " ".join(capsys.readouterr().err.split()) and change in card.notes
    assert card.training["schedule"]["warmup"] == 2
    assert run_command([*command, "--no-resume", "--set", "warmup=4"]) == 0
    assert "warm-up" not in capsys.readouterr().err


def test_a_folder_of_another_training_is_refused(tmp_path: Path) -> None:
    train_defense(_request(), _runtime(tmp_path), ignore_progress)
    with pytest.raises(UserError, match="other settings"):
        train_defense(_request(seed=1), _runtime(tmp_path), ignore_progress)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gama": 0.4}, "gamma"),
        ({"lr": float("nan")}, "finite"),
        ({"batch_size": 1.5}, "whole number of 1 or more"),
        ({"inner_steps": 0}, "whole number of 1 or more"),
        ({"warmup": 16}, "warm-up of 16 steps is not shorter than the training of 16 steps"),
        ({"warmup": -1}, "whole number of 0 or more"),
        ({"epochs": 1, "steps": 5}, "both epochs and steps are given"),
        ({"batch_size": 512}, "do not fill a batch"),
        ({"lr": -1}, "must be 0 or more"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_job(_request(settings=settings, epochs=None))


def test_settings_change_the_schedule_and_the_inner_attack() -> None:
    job = make_job(
        _request(settings={"steps": 5, "batch_size": 64, "inner_steps": 4, "weight_decay": 0.5}, epochs=None)
    )
    assert (job.steps, job.schedule.batch_size, job.schedule.epochs) == (5, 64, 0)
    assert (job.defense.inner.steps, job.schedule.weight_decay) == (4, 0.5)
    plain = make_job(_request())
    assert plain.identity != job.identity


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "agtf"], "Did you mean agft"),
        (["train", "agft", "--track", "minni"], "Did you mean mini"),
        (["train", "agft", "--device", "gpu:0"], "give cpu or cuda"),
        (["train", "agft", "--eps", "8"], "eps 8 is larger than 1 in Linf"),
        (["train", "agft", "--epochs", "1", "--set", "epochs=2"], "given twice"),
        (["train", "gladiator", "--num-images", "256", "--epochs", "1", "--set", "rho=2"], "at least 0 and below 1"),
        (["train", "agft", "--out", __file__], "a part of the path is a file"),
        (["train", "agft", "--num-images", "1000000"], "100000 images, not 1000000"),
    ],
)
def test_wrong_options_of_train_give_a_message(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_sweep_trains_each_combination_once_and_chooses_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "sweep", "agft", "--grid", "lr=1e-4,1e30", "--grid", "gamma=0.2,0.4", "--num-images", "512",
        "--train-fraction", "1/2", "--epochs", "1", "--device", "cpu", "--out", str(tmp_path), "--json",
    ]  # fmt: skip
    assert run_command(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert [trial["settings"] for trial in found["trials"]] == [
        {"lr": rate, "gamma": gamma} for rate in (1e-4, 1e30) for gamma in (0.2, 0.4)
    ]
    ended, lost = found["trials"][:2], found["trials"][2:]
    assert all(0 <= trial["robust"] <= trial["clean"] <= 1 for trial in ended)
    assert all(trial["robust"] is None for trial in lost) and found["best"] in ended
    assert found["num_images"] == 256 and found["held_out"] == 1024
    with (tmp_path / "sweep.csv").open() as file:
        assert [row["lr"] for row in csv.DictReader(file)] == ["0.0001", "0.0001", "1e+30", "1e+30"]
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    seconds = [trial["seconds"] for trial in found["trials"]]
    assert run_command(arguments) == 0
    assert [trial["seconds"] for trial in json.loads(capsys.readouterr().out)["trials"]] == seconds
    # Another fraction of the images gives other trainings in the same folder.
    assert run_command([{"1/2": "1"}.get(word, word) for word in arguments]) == 0
    other = json.loads(capsys.readouterr().out)
    assert other["num_images"] == 512 and other["trials"][0]["robust"] is not None
    assert len(list(tmp_path.glob("*/trial.json"))) == 8
    assert run_command(arguments[:-1]) == 0
    out = capsys.readouterr().out
    assert "choose lr 0.0001" in out and "\x1b" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid", "rate"], "NAME=N,N"),
        (["--grid", "lr=1e-3", "--train-fraction", "2"], "at most 1"),
        (["--grid", "lr=1e-3", "--train-fraction", "x"], "above 0 and at most 1, such as 1/4, got 'x'"),
        (["--grid", "lr=1e-3", "--num-images", "100000"], "keep at least 1 image"),
        (["--grid", "rho=1"], "setting of agft"),
        (["--grid", "lr=1", "--grid", "lr=2"], "given twice"),
        (["--grid", "batch_size=8,1024", "--num-images", "512"], "do not fill a batch of 1024"),
        (["--grid", "lr=1", "--plot", "curve.txt"], ".png or .svg"),
    ],
)
def test_wrong_options_of_sweep_give_a_message_before_any_training(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["sweep", "agft", *arguments, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
