"""Tests of trainings with damaged files, full disks and numbers that are too large: each ends in a message."""

import contextlib
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_vlm.cli.main import run_command
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.models.card import read_card
from robustbench_vlm.training.checkpoint import Checkpoint
from robustbench_vlm.training.log import COLUMNS, Log, Row, plot_log, read_log
from robustbench_vlm.training.tensor_files import load_tensors, save_tensors

OPTIONS = ["--num-images", "64", "--set", "batch_size=16", "--set", "steps=4", "--save-every", "1", "--device", "cpu"]


def train(folder: Path, *options: str, defense: str = "tecoa") -> int:
    return run_command(["train", defense, *OPTIONS, "--out", str(folder), *options])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert train(folder) == 0
    return folder


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 128
    path.write_bytes(content)


def _replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _write(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def _save(content: object) -> Callable[[Path], object]:
    return lambda path: torch.save(content, path)


@pytest.mark.parametrize(
    "damage",
    [
        _cut,
        _flip_one_bit,
        _replace_by_a_folder,
        _write(b""),
        _write(b"hello"),
        _save([1, 2]),
        _save({"identity": "", "step": "many", "seconds": 1.0}),
        _save(torch.nn.Linear(1, 1)),
    ],
)
def test_a_damaged_checkpoint_gives_a_message(
    damage: Callable[[Path], object], trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    damage(folder / "checkpoint.pt")
    assert train(folder) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "checkpoint.pt" in message and "remove it" in message


@pytest.mark.parametrize("missing", ["tower", "optimizer", "step"])
def test_a_checkpoint_with_parts_of_another_network_gives_a_message(
    missing: str, trained: Path, tmp_path: Path
) -> None:
    state = torch.load(trained / "checkpoint.pt", weights_only=True)
    state[missing] = {"weight": torch.zeros(1)} if missing == "tower" else {}
    save_tensors(tmp_path / "checkpoint.pt", state)
    network = torch.nn.Linear(3, 2)
    with pytest.raises(UserError, match="is not a complete checkpoint"):
        Checkpoint(tmp_path / "checkpoint.pt", state["identity"]).load(network, torch.optim.AdamW(network.parameters()))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_any_changed_bit_of_a_tensor_file_is_found_or_harmless(
    place: float, bit: int, cut: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("bits") / "file.pt"
    content = {"values": torch.arange(100.0), "step": 3}
    save_tensors(path, content)
    changed = bytearray(path.read_bytes())
    index = int(place * len(changed))
    changed[index] ^= 1 << bit
    path.write_bytes(changed[:index] if cut else changed)
    # Changes of padding or of file times in the archive do not change the content.
    with contextlib.suppress(UserError):
        found = load_tensors(path, "checkpoint")
        assert torch.equal(found["values"], content["values"]) and found["step"] == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not begin with the line step,loss"),
        (b"\xff\xfe\x00", "is not a text file"),
        (b"1,2,3\n", "does not begin with the line step,loss"),
        (",".join(COLUMNS).encode() + b"\r\n20,1.0\r\n", "line 2 of the log"),
        (",".join(COLUMNS).encode() + b"\r\n20,1.0,,,0.1,x\r\n", "line 2 of the log"),
        (",".join(COLUMNS).encode() + b"\r\n20,\x00,,,0.1,1\r\n", "line 2 of the log"),
    ],
)
def test_a_damaged_log_gives_a_message(
    content: bytes, message: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    (folder / "log.csv").write_bytes(content)
    assert train(folder) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert message in shown and "remove the file and repeat the command" in shown
    (folder / "log.csv").unlink()
    assert train(folder) == 0


def test_a_damaged_log_does_not_stop_a_training_from_the_beginning(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    (folder / "log.csv").write_bytes(b"\xff")
    assert train(folder, "--no-resume") == 0 and [row.step for row in read_log(folder / "log.csv")] == [4]


@settings(deadline=None, derandomize=True, max_examples=100)
@given(content=st.binary(max_size=80))
def test_any_log_is_read_or_gives_a_message(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("log") / "log.csv"
    Log(path, 0).add(Row(20, 1.0, None, None, 0.1, 1.0))
    path.write_bytes(path.read_bytes() + content)
    with contextlib.suppress(UserError):
        plot_log(read_log(path)[:1], path.with_name("curves.png"), "any")


@contextlib.contextmanager
def _largest_file(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("size", "save_every", "kept", "file"),
    [
        (10, 1, (), "log.csv"),
        (50, 200, (), "log.csv"),
        (50_000, 1, (), "checkpoint.pt"),
        (50_000, 1, ("checkpoint.pt", "log.csv"), "tecoa.safetensors"),
        (5_000, 1, ("checkpoint.pt", "log.csv", "tecoa.safetensors"), "curves.png"),
    ],
)
def test_a_full_disk_gives_a_message_and_the_same_command_continues(
    size: int,
    save_every: int,
    kept: tuple[str, ...],
    file: str,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in kept:
        shutil.copy(trained / name, tmp_path)
    with _largest_file(size):
        assert train(tmp_path, "--save-every", str(save_every)) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert f"cannot write {tmp_path / file}" in message and "raise the limit" in message
    assert train(tmp_path) == 0
    assert read_card(tmp_path / "tecoa.json").image == read_card(trained / "tecoa.json").image


@pytest.mark.parametrize("name", ["lr", "weight_decay", "batch_size", "epochs", "warmup", "inner_steps", "scale"])
@pytest.mark.parametrize("value", ["1e38", "-1e38", "1e300", "-1e300", "nan", "inf"])
def test_settings_that_are_too_large_give_a_message(
    name: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["train", "tecoa", "--num-images", "32", "--out", str(tmp_path), "--set", f"{name}={value}"]
    assert run_command(options) == 2
    assert f"the setting {name} must be" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("options", [["--seed", "-1"], ["--seed", f"{2**70}"], ["--epochs", f"{10**400}"]])
def test_seeds_and_epochs_that_are_too_large_give_a_message(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["train", "tecoa", "--num-images", "128", "--out", str(tmp_path), *options]) == 2
    assert f"{options[0]} must be between 0 and 1000000000" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("defense", ["tecoa", "gladiator", "fare"])
def test_a_very_large_learning_rate_gives_a_message(
    defense: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, "--set", "lr=1e30", "--set", "warmup=0", defense=defense) == 2
    assert "lower the learning rate" in " ".join(capsys.readouterr().err.split())
