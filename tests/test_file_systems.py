"""File systems that lack an operation (locks, fsync, chmod): the commands work and print a note."""

import errno
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from robustbench_vlm.cli.main import run_command
from robustbench_vlm.core import files
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import exclusive_lock, explained, write_text

FAULTS = """
import fcntl, json, os, stat

numbers = json.loads(os.environ["FAULTS"])
real = {"fsync": os.fsync, "chmod": os.chmod, "flock": fcntl.flock}


def fsync(handle):
    kind = "folder fsync" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file fsync"
    return fail(kind) if kind in numbers else real["fsync"](handle)


def chmod(path, *arguments, **options):
    is_limited = os.fspath(path).startswith(os.environ["LIMITED"])
    return fail("chmod") if "chmod" in numbers and is_limited else real["chmod"](path, *arguments, **options)


def flock(*arguments):
    return fail("flock") if "flock" in numbers else real["flock"](*arguments)


def fail(kind):
    raise OSError(numbers[kind], os.strerror(numbers[kind]))


os.fsync, os.chmod, fcntl.flock = fsync, chmod, flock
"""
"""A sitecustomize module, which Python imports in each process, that makes system calls fail."""

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Command:
    """Return a function (faults, arguments) that runs `vlmbench` on a file system with these faults."""
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "sitecustomize.py").write_text(FAULTS)

    def run(faults: dict[str, int], *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        paths = os.pathsep.join([str(tmp_path / "faults"), str(Path(files.__file__).parents[2])])
        environment = os.environ | {"FAULTS": json.dumps(faults), "LIMITED": str(tmp_path), "PYTHONPATH": paths}
        command = [sys.executable, "-m", "robustbench_vlm", *arguments]
        environment |= variables
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


RUN = (
    *("run", "--model", "clip", "--attack", "fgsm", "--dataset", "shapes", "--dataset", "colours"),
    *("--samples", "4", "--device", "cpu"),
)


@pytest.mark.parametrize(
    ("faults", "notes"),
    [
        ({"flock": errno.ENOLCK, "file fsync": errno.EINVAL}, ["does not support locks", "does not support fsync"]),
        ({"flock": errno.ENOSYS, "folder fsync": errno.EINVAL, "chmod": errno.EPERM}, ["does not support locks"]),
        ({"flock": errno.EOPNOTSUPP, "folder fsync": errno.ENOTSUP, "chmod": errno.ENOTSUP}, ["support locks"]),
        ({"folder fsync": errno.EPERM, "chmod": errno.EINVAL}, []),
    ],
)
def test_a_run_on_a_limited_file_system_works_with_a_note(
    run: Command, tmp_path: Path, faults: dict[str, int], notes: list[str]
) -> None:
    done = run(faults, *RUN, "--workers", "2" if notes else "1")
    assert done.returncode == 0, done.stderr
    for note in notes:
        assert done.stderr.count(note) == 1, done.stderr
    assert bool(notes) == ("file system" in done.stderr)
    assert len(list((tmp_path / "runs").rglob("*.parquet"))) == 2
    again = run({}, *RUN, "--workers", "1")
    assert "".join(rows(again.stdout)) == "".join(rows(done.stdout)) != ""


def rows(table: str) -> list[str]:
    """Return the lines with accuracies."""
    return [line for line in table.splitlines() if line.startswith(("shapes", "colours", "mean"))]


def test_a_temporary_folder_that_refuses_chmod_is_not_used_for_sockets(run: Command, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    done = run({"chmod": errno.EPERM}, *RUN, "--workers", "2", TMPDIR=str(tmp_path / "t"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("length", [60, 75, 100, 300])
def test_a_temporary_folder_with_a_long_path_can_be_used(run: Command, tmp_path: Path, length: int) -> None:
    folder = tmp_path / "t"
    while len(str(folder)) < length:
        folder = folder / ("x" * min(100, max(1, length - len(str(folder)) - 1)))
    folder.mkdir(parents=True, exist_ok=True)
    done = run({}, *RUN, "--workers", "2", TMPDIR=str(folder))
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir())


def test_an_error_of_the_disk_in_fsync_is_not_ignored(run: Command) -> None:
    done = run({"file fsync": errno.EIO}, *RUN, "--workers", "1")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "the disk reports an error: check the disk" in " ".join(done.stderr.split())


@pytest.mark.parametrize("number", [number for number in errno.errorcode if number not in (errno.EINTR,)])
def test_every_error_of_the_system_becomes_a_message(number: int) -> None:
    with pytest.raises(UserError, match=r"cannot write some/file: .*repeat the command"), explained(Path("some/file")):
        raise OSError(number, os.strerror(number))


def test_a_lock_excludes_other_processes_until_its_process_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    program = (
        "import sys; from pathlib import Path; from robustbench_vlm.core.files import exclusive_lock\n"
        "with exclusive_lock(Path(sys.argv[1]), wait=False): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError), exclusive_lock(path, wait=False):
            pass
        process.kill()
    with exclusive_lock(path, wait=True), warnings.catch_warnings(action="error"):
        write_text(tmp_path / "file", "content")


LONG = "x" * 300
"""A file name that no file system accepts."""


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--images", LONG],
        ["run", "--out", f"{LONG}/a", "--samples", "4", "--attack", "fgsm", "--dataset", "shapes", "--workers", "1"],
        ["run", "--model", f"{LONG}.json"],
        ["run", "--track", "zeroshot15", "--data", LONG],
        ["compare", LONG],
        ["compare", "clip", "--plot", f"{LONG}.png"],
        ["submit", LONG],
        ["verify", f"{LONG}.json"],
        ["train", "agft", "--images", LONG],
        ["data", "list", "--data", LONG],
        ["pretrain", "--out", LONG],
        ["sweep", "agft", "--grid", "lr=1e-3", "--out", LONG],
        ["convert", LONG, "--base", "clip"],
    ],
    ids=lambda arguments: " ".join(arguments[:3])[:30],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_path_that_the_system_refuses_ends_with_a_message(
    arguments: list[str],
    as_json: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command([*arguments, *(["--json"] if as_json else [])]) == 2
    shown = capsys.readouterr()
    message = json.loads(shown.out)["error"] if as_json else shown.err
    assert "Traceback" not in message and len(message) < 1500
