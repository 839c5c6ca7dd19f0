"""Odd inputs for the command line: every case is one command, run in a process of its own.

`python tests/odd_inputs.py [WORD ...]` runs all cases, or those whose names contain one of the words, and prints the
exit code and the last line of each. A case passes if the command ends within its time, without a traceback and with an
exit code that the command line documents.
"""

import contextlib
import io
import json
import os
import pickle
import resource
import signal
import socket
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy
import torch
from PIL import Image

SECONDS = 100
RUN = ("run", "--attack", "fgsm", "--workers", "1")
SHORT = (*RUN, "--dataset", "shapes", "--samples", "2")
CLIP = (*SHORT, "--model", "clip")


@dataclass(frozen=True)
class Case:
    """One command with the files and the environment that it meets."""

    name: str
    arguments: tuple[str, ...]
    prepare: Callable[[Path], None] = lambda folder: None
    """Makes the files of the case in its working folder."""
    environment: dict[str, str | None] = field(default_factory=dict)
    """Variables to set, or with None to remove, before the command."""
    before: Callable[[], None] = lambda: None
    """Called in the process of the case, to set limits or close streams."""


@dataclass(frozen=True)
class Outcome:
    """The end of a case."""

    code: int
    """Exit code; negative for a signal, -9 if the command did not end in time."""
    output: str
    """Standard output and standard error."""

    @property
    def is_good(self) -> bool:
        """Whether the command ended as documented, without a traceback."""
        return self.code in (0, 1, 2, 130) and "Traceback (most recent call last)" not in self.output


def images(folder: Path, *, classes: tuple[str, str] = ("cat", "dog")) -> Path:
    """Make a folder "images" with two classes of two images each, and return the first class's folder."""
    for number, name in enumerate(classes):
        (folder / "images" / name).mkdir(parents=True)
        for k in range(2):
            Image.new("RGB", (40, 32), (200 * number, 90 * k, 10)).save(folder / "images" / name / f"{k}.png")
    return folder / "images" / classes[0]


def _image_cases() -> Iterator[Case]:
    own = (*RUN, "--model", "clip", "--samples", "all", "--eps", "1/255", "--images", "images")

    def with_file(name: str, content: bytes | Callable[[Path], object]) -> Callable[[Path], None]:
        def prepare(folder: Path) -> None:
            path = images(folder) / name
            path.write_bytes(content) if isinstance(content, bytes) else content(path)

        return prepare

    def saved(mode: str, size: tuple[int, int] = (40, 32), **options: object) -> Callable[[Path], object]:
        return lambda path: Image.new(mode, size).save(path, **options)  # type: ignore[arg-type]

    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 99999, 99999, 8, 2, 0, 0, 0) + bytes(4)
    buffer = io.BytesIO()
    Image.new("RGB", (40, 32)).save(buffer, "JPEG")
    contents: dict[str, tuple[str, bytes | Callable[[Path], object]]] = {
        "empty file": ("x.png", b""),
        "truncated jpeg": ("x.jpg", buffer.getvalue()[:300]),
        "page named jpg": ("x.jpg", b"<html>404</html>"),
        "folder named png": ("x.png", lambda path: path.mkdir()),
        "dangling link": ("x.png", lambda path: path.symlink_to("nowhere.png")),
        "link to itself": ("x.png", lambda path: path.symlink_to(path)),
        "link to the class folder": ("deeper", lambda path: path.symlink_to(path.parent)),
        "named pipe": ("x.png", os.mkfifo),
        "socket": ("x.png", _socket),
        "decompression bomb": ("x.png", bomb),
        "one pixel": ("x.png", saved("RGB", (1, 1))),
        "one row": ("x.png", saved("RGB", (3000, 1))),
        "animated gif": ("x.gif", _animation),
        "tiff of two pages": ("x.tif", _pages),
        "float tiff": ("x.tif", saved("F")),
        "32-bit tiff": ("x.tif", saved("I")),
        "16-bit png": ("x.png", saved("I;16")),
        "cmyk jpeg": ("x.jpg", saved("CMYK")),
        "palette with transparency": ("x.png", saved("P", transparency=0)),
        "damaged exif": ("x.jpg", saved("RGB", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")),
        "svg": ("x.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        "hidden file": (".DS_Store", bytes(100)),
        "name with a newline": ("a\nb.png", saved("RGB")),
        "name with markup": ("[red]a[bold].png", saved("RGB")),
        "name that is not utf-8": (os.fsdecode(b"\xff\xfe.png"), saved("RGB")),
        "name of 250 characters": ("n" * 246 + ".png", saved("RGB")),
    }
    for name, (file, content) in contents.items():
        yield Case(f"image: {name}", own, with_file(file, content))
        yield Case(f"image skipped: {name}", (*own, "--skip-unreadable"), with_file(file, content))
    for name, classes in {
        "control characters": ("cat\x1b[31m", "dog"),
        "equal but for case": ("Cat", "cat"),
        "an equals sign": ("=1+1", "dog"),
        "emoji": ("🐈", "🐕"),
        "braces": ("{}", "{0}"),
        "not utf-8": (os.fsdecode(b"caf\xe9"), "dog"),
        "200 characters": ("c" * 200, "d" * 200),
    }.items():
        yield Case(f"classes: {name}", own, lambda folder, classes=classes: images(folder, classes=classes) and None)
    for prompt in ("", "no place", "{}{}", "{0}", "{x}", "{", "a\nb {}", "word " * 500 + "{}"):
        yield Case(f"prompt: {prompt[:20]!r}", (*own, "--prompt", prompt), lambda folder: images(folder) and None)
    for name in ("missing", "file", "empty", "\x00"):
        yield Case(f"images: {name!r}", (*own[:-1], name), _odd_paths)


def _socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # the address of a socket has at most 107 characters
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(before)


def _animation(path: Path) -> None:
    frames = [Image.new("RGB", (40, 32), (n * 40, 0, 0)) for n in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def _pages(path: Path) -> None:
    Image.new("RGB", (40, 32)).save(path, save_all=True, append_images=[Image.new("L", (8, 8))])


def _odd_paths(folder: Path) -> None:
    (folder / "file").write_text("text")
    (folder / "empty").mkdir()


def _checkpoint_cases() -> Iterator[Case]:
    def saved(value: object) -> Callable[[Path], object]:
        return lambda path: torch.save(value, path)

    def zipped(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", b"garbage")

    header = json.dumps({"a": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}}).encode()
    twice = (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    )
    files: dict[str, tuple[str, bytes | Callable[[Path], object]]] = {
        "empty": ("x.pt", b""),
        "random bytes": ("x.pt", bytes(range(256)) * 20),
        "text": ("x.pth", b"not weights\n"),
        "git lfs pointer": ("x.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"),
        "web page": ("x.pt", b"<!DOCTYPE html><html></html>"),
        "zip without weights": ("x.pt", zipped),
        "pickle with code": ("x.pt", pickle.dumps(print)),
        "whole module": ("x.pt", saved(torch.nn.Linear(2, 2))),
        "one tensor": ("x.pt", saved(torch.ones(3))),
        "list": ("x.pt", saved([1, [2, [3]]])),
        "empty dict": ("x.pt", saved({})),
        "numbers as keys": ("x.pt", saved({1: torch.ones(1), (2, 3): torch.ones(1)})),
        "empty tensors": ("x.pt", saved({"visual.conv1.weight": torch.ones(0)})),
        "complex tensors": ("x.pt", saved({"visual.conv1.weight": torch.ones(2, dtype=torch.complex64)})),
        "sparse tensor": ("x.pt", saved({"visual.conv1.weight": torch.eye(4).to_sparse()})),
        "meta tensor": ("x.pt", saved({"visual.conv1.weight": torch.ones(2, device="meta")})),
        "int8 tensor": ("x.pt", saved({"visual.conv1.weight": torch.ones(2, 3, dtype=torch.int8)})),
        "text in place of tensors": ("x.pt", saved({"state_dict": "none", "epoch": 3})),
        "nested state": ("x.pt", saved({"model": {"state_dict": {"model": {}}}})),
        "key of 5000 characters": ("x.pt", saved({"k" * 5000: torch.ones(1)})),
        "safetensors: short": ("x.safetensors", b"\x01"),
        "safetensors: huge header": ("x.safetensors", struct.pack("<Q", 2**60) + b"{}"),
        "safetensors: no json": ("x.safetensors", struct.pack("<Q", 4) + b"abcd"),
        "safetensors: missing data": ("x.safetensors", struct.pack("<Q", len(header)) + header),
        "safetensors: key twice": ("x.safetensors", struct.pack("<Q", len(twice)) + twice + bytes(8)),
        "safetensors: upper case": ("x.SAFETENSORS", b"garbage"),
        "folder": ("x.pt", lambda path: path.mkdir()),
        "folder with an index": ("x.pt", _index),
    }
    for name, (file, content) in files.items():

        def prepare(folder: Path, file: str = file, content: bytes | Callable[[Path], object] = content) -> None:
            path = folder / file
            path.write_bytes(content) if isinstance(content, bytes) else content(path)

        yield Case(f"convert: {name}", ("convert", file, "--base", "clip", "--track", "mini", "--name", "x"), prepare)
    for name in ("/dev/null", "missing.pt", "", "\x00", "x" * 5000):
        yield Case(f"convert: {name[:12]!r}", ("convert", name, "--base", "clip", "--track", "mini", "--name", "x"))
    for name in ("", "../x", "a/b", "n" * 300, "=1", "[red]", "x\ny"):
        yield Case(
            f"convert to the name {name[:8]!r}",
            ("convert", "x.pt", "--base", "clip", "--track", "mini", "--name", name),
            lambda folder: torch.save({"visual.conv1.weight": torch.ones(2)}, folder / "x.pt"),
        )


def _index(path: Path) -> None:
    path.mkdir()
    (path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../../etc/passwd"}}')


def _card_cases() -> Iterator[Case]:
    good = {"name": "c", "architecture": "mini", "image": {"file": "i.safetensors", "sha256": "0" * 64}}
    cards: dict[str, bytes] = {
        "empty": b"",
        "list": b"[]",
        "null": b"null",
        "number": b"5",
        "deep": b"[" * 100_000,
        "deep object": b'{"name":' * 3000 + b"1" + b"}" * 3000,
        "byte order mark": b"\xef\xbb\xbf" + json.dumps(good).encode(),
        "utf-16": json.dumps(good).encode("utf-16"),
        "not utf-8": b'{"name": "\xff"}',
        "key twice": b'{"name": "a", "name": "b", "architecture": "mini"}',
        "infinite number": b'{"name": "a", "architecture": "mini", "mean": [1e999, 0, 0]}',
        "nan": b'{"name": "a", "architecture": "mini", "mean": [NaN, 0, 0], "std": [1, 1, 1]}',
        "lone surrogate": b'{"name": "\\ud800", "architecture": "mini"}',
        "missing weights": json.dumps(good).encode(),
        "absolute path": json.dumps({**good, "image": {"file": "/etc/passwd", "sha256": "0" * 64}}).encode(),
        "path above": json.dumps({**good, "image": {"file": "../../x", "sha256": "0" * 64}}).encode(),
        "wrong types": json.dumps({**good, "image": [1], "eps": {}, "name": 5}).encode(),
        "huge integer": b'{"name": ' + b"9" * 5000 + b"}",
    }
    for name, content in cards.items():
        yield Case(
            f"card: {name}",
            (*SHORT, "--model", "card.json"),
            lambda folder, content=content: (folder / "card.json").write_bytes(content) and None,
        )
    yield Case("card: folder", (*SHORT, "--model", "card.json"), lambda folder: (folder / "card.json").mkdir())
    for name in (
        "",
        "+",
        "ttc+",
        "ttc+ttc+clip",
        "open_clip:",
        "open_clip:a/b/c",
        "hf:",
        "memory:x",
        "x.pt",
        "\x00",
        "a" * 5000,
    ):
        yield Case(f"model: {name[:14]!r}", (*SHORT, "--model", name))


def _run_folder_cases() -> Iterator[Case]:
    base = Path("runs/mini/clip/fgsm")

    def ruin(pattern: str, change: Callable[[Path], object]) -> Callable[[Path], None]:
        def prepare(folder: Path) -> None:
            call([*CLIP])
            for path in sorted((folder / base).rglob(pattern)):
                change(path)

        return prepare

    def as_folder(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.mkdir()

    def as_pipe(path: Path) -> None:
        path.unlink()
        os.mkfifo(path)

    changes: dict[str, tuple[str, Callable[[Path], object]]] = {
        "manifest of garbage": ("manifest.json", lambda path: path.write_bytes(b"\xff\x00{")),
        "empty manifest": ("manifest.json", lambda path: path.write_bytes(b"")),
        "manifest without cells": ("manifest.json", lambda path: path.write_text('{"cells": [{}]}')),
        "manifest as folder": ("manifest.json", as_folder),
        "manifest as list": ("manifest.json", lambda path: path.write_text("[1, 2]")),
        "deep manifest": ("manifest.json", lambda path: path.write_text("[" * 100_000)),
        "scores as folder": ("scores.csv", as_folder),
        "records of garbage": ("*.parquet", lambda path: path.write_bytes(b"PAR1garbagePAR1")),
        "empty records": ("*.parquet", lambda path: path.write_bytes(b"")),
        "records as folder": ("*.parquet", as_folder),
        "records of other columns": ("*.parquet", _other_columns),
        "link as records": ("*.parquet", lambda path: (path.unlink(), path.symlink_to(path))),
        "pipe as scores": ("scores.csv", as_pipe),
    }
    for name, (pattern, change) in changes.items():
        yield Case(f"run again: {name}", CLIP, ruin(pattern, change))
        yield Case(f"compare: {name}", ("compare", "runs/mini/clip", "agft", "--attack", "fgsm"), ruin(pattern, change))
        yield Case(f"submit: {name}", ("submit", "runs/mini/clip"), ruin(pattern, change))
    for name in (
        "file",
        "empty",
        "missing",
        "/dev/null",
        "/proc/nothing",
        "/dev/full/x",
        "~nouser/x",
        "s3://b/x",
        "a=1/b=2",
        "\x00",
    ):
        yield Case(f"out: {name!r}", (*CLIP, "--out", name), _odd_paths)
        yield Case(f"compare with {name!r}", ("compare", name, "clip"), _odd_paths)
        yield Case(f"submit {name!r}", ("submit", name), _odd_paths)
        yield Case(f"verify {name!r}", ("verify", name), _odd_paths)
        yield Case(f"dispute with {name!r}", ("dispute", "clip", "--images", name), _odd_paths)
        yield Case(f"build {name!r}", ("leaderboard", "build", name), _odd_paths)
    yield Case("out: not writable", (*CLIP, "--out", "/sys/x"))
    yield Case("data: file", ("data", "list", "--data", "file"), _odd_paths)
    yield Case("data: prepare in a file", ("data", "prepare", "cifar10", "--data", "file"), _odd_paths)
    yield Case("train: out is a file", ("train", "fare", "--steps", "2", "--out", "file"), _odd_paths)


def _other_columns(path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"a": [1, 2]}), path)


def _environment_cases() -> Iterator[Case]:
    variables: dict[str, dict[str, str | None]] = {
        "cache is a file": {"VLMBENCH_CACHE": "file"},
        "cache is /dev/null": {"VLMBENCH_CACHE": "/dev/null"},
        "cache of a user who is missing": {"VLMBENCH_CACHE": "~nouser/x"},
        "empty cache": {"VLMBENCH_CACHE": ""},
        "no home": {"HOME": None, "VLMBENCH_CACHE": None},
        "home is a file": {"HOME": "file", "VLMBENCH_CACHE": None},
        "data is a file": {"VLMBENCH_DATA": "file"},
        "no columns": {"COLUMNS": "0"},
        "negative columns": {"COLUMNS": "-5"},
        "columns in words": {"COLUMNS": "wide"},
        "one column": {"COLUMNS": "1"},
        "no temporary folder": {"TMPDIR": "/nonexistent"},
        "long temporary folder": {"TMPDIR": "t" * 120},
        "odd proxy": {"HTTPS_PROXY": "::::", "HTTP_PROXY": "://"},
        "no path": {"PATH": ""},
        "odd terminal": {"TERM": "\x1b[31m"},
        "hidden gpu": {"CUDA_VISIBLE_DEVICES": "99"},
    }
    for name, values in variables.items():
        yield Case(f"environment: {name}", (*CLIP, "--workers", "2"), _odd_paths, values)
    yield Case(
        "environment: data command without cache", ("data", "list"), _odd_paths, {"VLMBENCH_CACHE": "/dev/null/x"}
    )
    yield Case("closed output", ("list", "models"), before=lambda: os.close(1))
    yield Case("closed error output", (*CLIP,), before=lambda: os.close(2))
    yield Case("closed input", (*CLIP,), before=lambda: os.close(0))
    yield Case("full output", ("list", "models"), before=lambda: _to_full(1))
    yield Case("full output of a run", (*CLIP, "--json"), before=lambda: _to_full(1))
    yield Case("small files only", CLIP, before=lambda: _limit(resource.RLIMIT_FSIZE, 2000))
    yield Case(
        "training on small files only",
        ("train", "fare", "--steps", "2"),
        before=lambda: _limit(resource.RLIMIT_FSIZE, 2000),
    )
    yield Case("few open files", (*CLIP, "--workers", "2"), before=lambda: _limit(resource.RLIMIT_NOFILE, 24))
    yield Case("folder was removed", CLIP, before=lambda: Path.cwd().rmdir())


def _to_full(descriptor: int) -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), descriptor)


def _limit(what: int, value: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(what, (value, value))


def _option_cases() -> Iterator[Case]:
    odd: dict[str, tuple[str, ...]] = {
        "--samples": ("0", "-1", "1e3", "some", "99999999999999999999", ""),
        "--eps": ("nan", "inf", "-1/255", "1e-400", "8", "8/256", "1/0", "1//2", "٣/255", "", "9" * 5000),
        "--norm": ("l1", "", "Linf "),
        "--workers": ("-1", "1.5"),
        "--batch-size": ("0", "-4", "999999999999"),
        "--shard-size": ("0", "-1"),
        "--device": ("tpu", "cuda:9", ""),
        "--attack": (
            "",
            "pgd-0",
            "pgd--1",
            "pgd-99999999999999999999",
            "torchattacks:",
            "torchattacks:PGD",
            "autoattack+",
            "x" * 3000,
        ),
        "--dataset": ("", "nonesuch", "../shapes", "\x00"),
        "--protocol": ("", "nonesuch", "mini/2", "mini-quick-0"),
        "--track": ("", "nonesuch", "../mini"),
        "--engine": ("", "dask"),
        "--address": ("nowhere:1",),
    }
    for option, values in odd.items():
        for value in values:
            yield Case(
                f"{option} {value[:12]!r}",
                ("run", "--model", "clip", "--workers", "1", *_without(option), option, value),
            )
    commands: tuple[tuple[str, ...], ...] = (
        ("train", "fare", "--set", "lr=abc"),
        ("train", "fare", "--set", "lr"),
        ("train", "fare", "--set", "nonesuch=1"),
        ("train", "fare", "--set", "lr=nan", "--steps", "2"),
        ("train", "fare", "--set", "lr=1e38", "--steps", "2"),
        ("train", "fare", "--steps", "0"),
        ("train", "nonesuch"),
        ("train", "../fare"),
        ("sweep", "agft", "--grid", "gamma"),
        ("sweep", "agft", "--grid", "gamma="),
        ("sweep", "agft", "--grid", "nonesuch=1,2"),
        ("show", "attack", ""),
        ("show", "model", "\x00"),
        ("show", "sample", "clip", "shapes", "nonesuch"),
        ("show", "protocol", "nonesuch"),
        ("diff", "protocol", "mini", "nonesuch"),
        ("list", "nonesuch"),
        ("check", "dataset", "nonesuch"),
        ("check", "model", "/dev/null"),
        ("transfer", "--model", "clip"),
        ("transfer", "--model", "nonesuch", "--model", "clip"),
        ("compare", "clip"),
        ("compare", "clip", "clip"),
        ("compare", "clip", "agft", "--format", "nonesuch"),
        ("compare", "clip", "agft", "--plot", "x.nonesuch"),
        ("compare", "clip", "agft", "--plot", "/dev/full/x.png"),
        ("verify", "clip.json", "--samples", "0"),
        ("verify", "clip.json", "--seed", "-1"),
        ("leaderboard", "serve", "--port", "99999999"),
        ("leaderboard", "serve", "--port", "-1"),
        ("plan", "--model", "clip", "--samples", "0"),
        ("data", "prepare", "nonesuch"),
        ("data", "verify", "nonesuch"),
        ("diagnose", "--model", "clip", "--plot", "/proc/x.png"),
        ("nonesuch",),
        ("run", "--modle", "clip"),
        ("\x00",),
    )
    for words in commands:
        yield Case(f"command: {' '.join(words)[:60]!r}", words)


def _without(option: str) -> tuple[str, ...]:
    """Return the short run's options, without one of them."""
    pairs = [("--attack", "fgsm"), ("--dataset", "shapes"), ("--samples", "2")]
    return tuple(word for pair in pairs if pair[0] != option for word in pair)


CASES = (
    *_image_cases(),
    *_checkpoint_cases(),
    *_card_cases(),
    *_run_folder_cases(),
    *_environment_cases(),
    *_option_cases(),
)


def call(arguments: list[str]) -> int:
    """Run a command in this process, silently."""
    from robustbench_vlm.cli.main import run_command

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return run_command(arguments)


def outcome_of(case: Case) -> Outcome:
    """Run a case in a forked process and in a new folder, and return its end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "work"
        folder.mkdir()
        log = Path(name) / "output"
        process = os.fork()
        if process == 0:
            _child(case, folder, log)
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                break
            time.sleep(0.05)
        else:
            os.killpg(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        return Outcome(os.waitstatus_to_exitcode(status), text)


def _child(case: Case, folder: Path, log: Path) -> None:
    """Run a case and end the process."""
    code = 99
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        torch.set_num_threads(1)
        os.environ["VLMBENCH_CACHE"] = str(folder.parent / "cache")
        case.prepare(folder)
        for descriptor in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
        for key, value in case.environment.items():
            os.environ.pop(key, None) if value is None else os.environ.update({key: value})
        tempfile.tempdir = None
        case.before()
        sys.argv = ["vlmbench", *case.arguments]
        from robustbench_vlm.cli.main import main

        try:
            main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 98
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
    except BaseException:
        import traceback

        with log.open("a") as file:
            traceback.print_exc(file=file)
    finally:
        os._exit(code)


def run_all(words: list[str]) -> int:
    """Run the cases whose names contain one of the words, print their ends, and return the number of bad ones."""
    import robustbench_vlm.api
    import robustbench_vlm.cli.run  # noqa: F401

    numpy.zeros(1)
    torch.set_num_threads(1)
    bad = 0
    chosen = [case for case in CASES if not words or any(word in case.name for word in words)]
    for case in chosen:
        found = outcome_of(case)
        bad += not found.is_good
        last = (found.output.strip().splitlines() or [""])[-1]
        print(f"{'ok ' if found.is_good else 'BAD'} {found.code:4d}  {case.name:55.55}  {last[:300]}", flush=True)
    print(f"{bad} of {len(chosen)} cases are bad")
    return bad


if __name__ == "__main__":
    sys.exit(min(1, run_all(sys.argv[1:])))
