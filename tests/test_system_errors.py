"""Errors of the operating system: the command line ends in a message with the path and what to do, no traceback."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from robustbench_vlm.cli.main import run_command
from robustbench_vlm.cli.render.output import console, width
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import explained, os_error_message, os_reason
from robustbench_vlm.leaderboard.entry import board_folder

MODULE = f"{sys.executable} -m robustbench_vlm"
OTHER_USER = "unshare --user --map-user=12345 --map-group=12345 env -u HOME"
"""Starts a program as a user without a home folder, whom the list of users does not contain."""
Shell = Callable[[str], subprocess.CompletedProcess[str]]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Return a function that runs a line in bash, in an empty folder."""

    def run(line: str) -> subprocess.CompletedProcess[str]:
        answer = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert "Traceback" not in answer.stderr and "Exception ignored" not in answer.stderr, answer.stderr
        return answer

    return run


def is_possible(command: str) -> bool:
    return subprocess.run(["bash", "-c", command], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("command", ["data list", "data list --json", "--help", "--version"])
def test_a_full_stdout_gives_a_message_and_exit_code_2(command: str, shell: Shell) -> None:
    answer = shell(f"{MODULE} {command} > /dev/full")
    assert answer.returncode == 2 and answer.stdout == ""
    assert "disk is full" in answer.stderr or "No space left on device" in answer.stderr


def test_a_message_that_does_not_fit_stdout_is_on_stderr(shell: Shell) -> None:
    answer = shell(f"{MODULE} list atacks --json > /dev/full")
    assert answer.returncode == 2 and "Did you mean attacks" in answer.stderr


@pytest.mark.parametrize(
    ("redirection", "command", "code"),
    [
        (">&-", "data list", 0),
        (">&-", "data list --json", 0),
        ("2>&-", "data list", 0),
        ("2>&-", "data prepare atacks", 2),
        ("<&- >&- 2>&-", "data list", 0),
        ("2> /dev/full", "data prepare atacks", 2),
        ("2> /dev/full", "compare clip agft", 0),
    ],
)
def test_closed_streams_and_a_full_stderr_keep_the_exit_code(
    redirection: str, command: str, code: int, shell: Shell
) -> None:
    assert shell(f"{MODULE} {command} {redirection}").returncode == code


def test_a_file_does_not_take_the_place_of_a_closed_stdout(
    shell: Shell, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shell(f"{MODULE} compare clip agft --out table.txt >&- <&-").returncode == 0
    assert run_command(["compare", "clip", "agft"]) == 0
    assert (tmp_path / "table.txt").read_text().split()[:3] == capsys.readouterr().out.split()[:3]


@pytest.mark.parametrize("columns", ["0", "1", "2", "3", "9", "-4", "abc", "²", "1e9", ""])
def test_every_value_of_columns_gives_a_table(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("LINES", columns)
    assert width() == (int(columns) if columns in ("1", "2", "3", "9") else 10_000) and console().size.height > 0
    for command in (["list", "attacks"], ["show", "protocol", "trusted"], ["compare", "clip", "agft"]):
        assert run_command(command) == 0


@pytest.mark.parametrize("variable", ["VLMBENCH_CACHE", "VLMBENCH_DATA"])
def test_an_unknown_home_folder_in_a_variable_is_named(variable: str, shell: Shell) -> None:
    answer = shell(f"{variable}='~nobody-here/x' {MODULE} data list")
    assert answer.returncode == 2 and f"{variable} is '~nobody-here/x'" in answer.stderr


@pytest.mark.skipif(not is_possible(f"{OTHER_USER} true"), reason="this system allows no user namespaces")
def test_a_user_without_a_home_folder_is_asked_for_a_cache_folder(shell: Shell) -> None:
    answer = shell(f"unset VLMBENCH_CACHE VLMBENCH_DATA; {OTHER_USER} {MODULE} data list")
    assert answer.returncode == 2 and "set the environment variable VLMBENCH_CACHE" in answer.stderr
    assert shell(f"VLMBENCH_CACHE=cache {OTHER_USER} {MODULE} data list").returncode == 0
    assert shell(f"{OTHER_USER} {MODULE} compare clip agft --plot plot.png").returncode == 0


@pytest.mark.skipif(not is_possible(f"{OTHER_USER} true"), reason="this system allows no user namespaces")
def test_a_folder_without_permission_is_named(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    for command in ("compare clip agft --out closed/table.txt", "verify closed/mini/a.json --check", "submit closed"):
        answer = shell(f"{OTHER_USER} {MODULE} {command}")
        assert answer.returncode == 2 and "closed" in answer.stderr and ": " in answer.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", "clip", "agft", "--out", "/proc/nothing/x.txt"],
        ["compare", "clip", "agft", "--plot", "/proc/x.png"],
        ["leaderboard", "build", "--site", "/proc/nothing"],
        [
            "run",
            "--model",
            "clip",
            "--dataset",
            "shapes",
            "--samples",
            "2",
            "--attack",
            "fgsm",
            "--out",
            "/proc/nothing",
        ],
    ],
)
def test_a_path_that_cannot_be_created_is_named(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments[0] == "leaderboard":
        shutil.copytree(board_folder("mini"), tmp_path / "mini")
        arguments = [*arguments, "--folder", str(tmp_path)]
    assert run_command(arguments) == 2
    assert "cannot write /proc/" in capsys.readouterr().err


def test_a_folder_in_place_of_a_file_of_a_run_is_named(
    taught_card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(taught_card), "--attack", "fgsm", "--dataset", "colours", "--samples", "2"]
    command = ["run", *options, "--workers", "1", "--out"]
    assert run_command([*command, str(tmp_path / "right")]) == 0
    files = [path.relative_to(tmp_path / "right") for path in (tmp_path / "right").rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"manifest.json", "scores.csv", ".lock"} and len(files) == 4
    for number, file in enumerate(files):
        runs = tmp_path / str(number)
        shutil.copytree(tmp_path / "right", runs)
        (runs / file).unlink()
        (runs / file / "sub").mkdir(parents=True)
        capsys.readouterr()
        assert run_command([*command, str(runs)]) == 2
        assert f"{runs / file}: the path is a folder" in capsys.readouterr().err
        for other in (["compare", str(runs / "mini" / "taught"), "clip"], ["submit", str(runs / "mini" / "taught")]):
            assert run_command(other) == 2


@pytest.mark.parametrize("name", ["README.md", "leaderboards/README.md", "leaderboards/zeroshot15/reported.csv"])
@pytest.mark.parametrize("content", ["folder", b"\xff\xfe\x00", b'"a\x00b"\n'])
def test_a_file_of_the_leaderboards_that_is_no_text_is_named(
    name: str, content: str | bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "leaderboards"
    (folder / "zeroshot15").mkdir(parents=True)
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        (tmp_path / name).mkdir()
    for command in (["check"], ["build", "--site", str(tmp_path / "site")]):
        code = run_command(["leaderboard", *command, "--folder", str(folder)])
        assert code in (0, 1, 2)
        if code == 2:
            assert name.rpartition("/")[2] in capsys.readouterr().err


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_every_error_number_gives_a_message_with_the_path(number: int, tmp_path: Path) -> None:
    error = OSError(number, os.strerror(number), str(tmp_path))
    assert str(tmp_path) in os_error_message(error) and ": " in os_reason(error)
    with pytest.raises((UserError, OSError)) as caught, explained(tmp_path):
        raise error
    assert isinstance(caught.value, OSError) or "cannot write" in str(caught.value)


def test_an_error_that_reaches_the_command_line_is_a_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> None:
        (tmp_path / "missing").read_bytes()

    monkeypatch.setattr("robustbench_vlm.cli.kinds.entries", fail)
    for more in ([], ["--json"]):
        assert run_command(["list", "models", *more]) == 2
        printed = capsys.readouterr()
        assert f"cannot use {tmp_path / 'missing'}: the path does not exist" in printed.err + printed.out
