"""The command line as users and programs see it: documents, tables, messages, exit codes, Ctrl-C, terminals."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from quickness import least_seconds

from robustbench_vlm.analysis.check_result import CheckResult
from robustbench_vlm.cli import kinds
from robustbench_vlm.cli import main as cli
from robustbench_vlm.cli.main import run_command
from robustbench_vlm.core.progress import Progress
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.datasets.published import PUBLISHED
from robustbench_vlm.protocols.mini import MINI_QUICK
from robustbench_vlm.tracks import MINI

REAL = Path(__file__).parents[2] / "shared" / "data" / "real"
MODULE = [sys.executable, "-m", "robustbench_vlm"]
ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")

Document = Callable[..., dict[str, Any]]


@pytest.fixture
def quick(taught_card: Path, tmp_path: Path) -> list[str]:
    """Return the options of a run that takes about a second."""
    return [*("--model", str(taught_card), "--attack", "fgsm"), *("--workers", "1", "--out", str(tmp_path / "runs"))]


@pytest.fixture
def document(capsys: pytest.CaptureFixture[str]) -> Document:
    """Return a function that runs a command with --json and returns its document. Any other output fails the test."""

    def run(*arguments: str, code: int = 0) -> dict[str, Any]:
        assert run_command([*arguments, "--json"]) == code
        printed = capsys.readouterr()
        assert printed.err == ""
        found: dict[str, Any] = json.loads(printed.out)
        return found

    return run


def test_the_document_of_a_run(document: Document, quick: list[str], taught_card: Path) -> None:
    found = document("run", *quick, "--dataset", "colours", "--dataset", "day-night", "--samples", "6")
    assert {"track", "protocol", "model", "attack", "fingerprint", "scores", "mean", "seconds"} <= set(found)
    assert (found["track"], found["protocol"], found["model"]) == ("mini", "mini-quick-6/1", "taught")
    assert found["attack"] == "fgsm" and re.fullmatch("[0-9a-f]{64}", found["fingerprint"])
    eps = Threat(MINI.norm, MINI.standard_eps).eps_text
    assert [(score["dataset"], score["n"], score["eps"]) for score in found["scores"]] == [
        ("colours", 6, eps),
        ("day-night", 6, eps),
    ]
    for score in found["scores"]:
        assert 0 <= score["robust"] <= score["clean"] <= 1
        for share in ("clean", "robust"):
            low, high = score[f"{share}_interval"]
            assert 0 <= low <= score[share] <= high <= 1
    assert found["mean"]["clean"] == pytest.approx(sum(score["clean"] for score in found["scores"]) / 2)


def test_a_grid_is_one_document(document: Document, quick: list[str]) -> None:
    found = document("run", *quick, "--attack", "pgd-3", *("--eps", "1/255", "--eps", "0"), *("--dataset", "colours"))
    assert [(run["attack"], run["eps"]) for run in found["runs"]] == [
        ("fgsm", "1/255"),
        ("fgsm", "0/255"),
        ("pgd-3", "1/255"),
        ("pgd-3", "0/255"),
    ]


def test_a_plan_attacks_nothing(document: Document, quick: list[str], tmp_path: Path) -> None:
    options = [*quick, "--dataset", "colours", "--samples", "5"]
    found = document("plan", *options)
    assert [cell["n"] for cell in found["cells"]] == [5]
    assert 0 < found["estimate"]["seconds_expected"] <= found["estimate"]["seconds_most"]
    (cell,) = found["cells"]
    same = ("passes_expected", "passes_most", "seconds_expected", "seconds_most")
    assert [cell[key] for key in same] == [found["estimate"][key] for key in same] and cell["memory"] > 0
    assert found["samples_on_disk"] == 0 and not (tmp_path / "runs").exists()
    ran = document("run", *options)
    assert document("plan", *options)["samples_on_disk"] == 5
    assert document("run", *options)["scores"] == ran["scores"]


def test_the_table_of_a_run_in_a_pipe(quick: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["run", *quick, "--dataset", "colours", "--dataset", "shapes"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[2].split()[:7] == ["dataset", "classes", "n", "clean", "robust", "95", "%"]
    assert lines[3].startswith("colours") and lines[4].startswith("shapes") and lines[5].startswith("mean")
    # The undefended model has near-chance accuracy. The table explains the warning.
    assert "near-chance" in lines[4]
    assert any(line.startswith("near-chance: ") for line in lines)
    assert any(line.startswith("protocol mini-quick/1, fingerprint ") for line in lines)
    assert f"records in {quick[-1]}" in printed.out
    count = 2 * (MINI_QUICK.samples or 0)
    assert f"{count} of {count} samples" in printed.err and "\x1b" not in printed.out + printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--model", "nonesuch"], "unknown model 'nonesuch'.*card file"),
        (["run", "--track", "minni"], "unknown track 'minni'. Did you mean mini"),
        (["run", "--attack", "autoatack"], "unknown attack 'autoatack'. Did you mean autoattack"),
        (["run", "--eps", "8"], "eps 8 is larger than 1.*pixel steps.*8/255"),
        (["run", "--samples", "-1"], "must be a positive integer or .all., got"),
        (["run", "--samples", "0"], "must be a positive integer or .all., got"),
        (["run", "--workers", "many"], "--workers.*integer.*vlmbench run --help"),
        (["run", "--images", "no/such/folder"], "no folder no/such/folder"),
        (["run", "--modle", "clip"], "--modle.*vlmbench run --help"),
        (["show", "attack"], "NAME.*vlmbench show attack --help"),
        (["show", "atack", "fgsm"], "unknown kind 'atack'. Did you mean attacks"),
        (["show", "sample", "colours", "nonesuch"], "unknown sample .nonesuch. of .colours..*--samples all"),
        (["show", "sample", "colours", "0", "--out", "x.bmp"], "--out must end in .png or .svg, got x.bmp"),
        (["show", "sample", "colors", "0"], "unknown dataset 'colors'. Did you mean colours"),
        (["transfer", "--model", "clip"], "needs two or more models, but only one was given"),
        (["transfer", "--model", "clip", "--model", "agft", "--dataset", "scenes"], "trained on scenes.*another"),
        (["transfer", "--model", "clip", "--model", "agft", "--save", "/dev/null"], "/dev/null is a file"),
        (["check", "attack", "nonesuch"], "unknown attack 'nonesuch'"),
        (["list", "models", "--track", "nonesuch"], "unknown track 'nonesuch'"),
        (["diagnose", "--model", "clip", "--attack", "autoattack"], "stops as soon as a sample is broken.*pgd-10"),
        (["diagnose", "--model", "clip", "--plot", "curves.txt"], "must end in .png or .svg, got .*curves.txt"),
        (["diagnose", "--model", "clip", "--plot", "no/such/curves.png"], "the folder no/such does not exist"),
        (["diagnose", "--model", "nonesuch"], "unknown model 'nonesuch'"),
        (["train", "nonesuch"], "unknown defense 'nonesuch'"),
        (["train", "tecoa", "--set", "rate"], "must be NAME=NUMBER"),
        (["rum"], "rum.*vlmbench --help"),
    ],
)
def test_a_wrong_argument_gives_a_message_and_exit_code_2(
    arguments: list[str], message: str, document: Document, capsys: pytest.CaptureFixture[str], taught_card: Path
) -> None:
    if arguments[0] == "run" and "--model" not in arguments:
        arguments = [*arguments, "--model", str(taught_card)]
    assert re.search(message, document(*arguments, code=2)["error"])
    assert run_command(arguments) == 2
    printed = capsys.readouterr()
    assert re.search(message, printed.err) and printed.out == ""


def test_an_internal_error_gives_a_json_document_with_json(document: Document, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("ours")

    monkeypatch.setattr(kinds, "entries", fail)
    assert document("list", "models", code=1) == {"error": "AssertionError: ours"}
    with pytest.raises(AssertionError):
        run_command(["list", "models"])


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_every_value_is_listed_and_shown(kind: str, document: Document, capsys: pytest.CaptureFixture[str]) -> None:
    entries = document("list", kind)["entries"]
    assert document("list", f"{kind}s")["entries"] == entries
    names = [entry["name"] for entry in entries if entry["name"] not in kinds.KINDS[kind].families]
    assert run_command(["list", kind]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [entry["name"] for entry in entries]
    for name in names:
        assert document("show", kind, name)["kind"] == kind
        assert run_command(["show", kind, name]) == 0
        capsys.readouterr()


def test_card_files_and_parametrized_names_are_shown(
    document: Document, taught_card: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert document("show", "model", str(taught_card))["name"] == "taught"
    shown = document("show", "dataset", "cifar10")
    assert shown["transform"] == "pixels as stored" and shown["licence"] == "not stated"
    assert shown["origin"] == PUBLISHED["cifar10"].origin
    assert run_command(["show", "dataset", "shapes"]) == 0
    assert "transform" not in capsys.readouterr().out
    combined = document("show", "model", f"ttc+{taught_card}")
    assert combined["name"] == "ttc+taught" and combined["kind"] == "model"
    assert combined["test_time_defense"]["name"] == "ttc" and combined["model"]["name"] == "taught"
    assert document("show", "attack", "pgd-7")["stages"][0]["parameters"]["steps"] == 7


def test_checks_that_fail_give_exit_code_1(document: Document, monkeypatch: pytest.MonkeyPatch) -> None:
    assert document("check", "datasets", "colours")["passed"] is True
    broken = [CheckResult("holds", True), CheckResult("breaks", False, "seen")]
    monkeypatch.setattr("robustbench_vlm.analysis.contracts.check", lambda *arguments, **options: broken)
    found = document("check", "dataset", "colours", code=1)
    assert found["passed"] is False
    outcome = {"name": "breaks", "status": "fail", "passed": False, "detail": "seen", "value": None, "limit": None}
    assert found["checks"][1] == outcome


def test_the_doctor_prints_its_checks(document: Document, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def examine(track: str, *, model: str) -> list[CheckResult]:
        asked.append((track, model))
        return [CheckResult("holds", True, "seen")]

    monkeypatch.setattr("robustbench_vlm.analysis.doctor.doctor", examine)
    found = document("doctor", "--model", "other")
    outcome = {"name": "holds", "status": "pass", "passed": True, "detail": "seen", "value": None, "limit": None}
    assert found == {"passed": True, "checks": [outcome]}
    assert asked == [("mini", "other")]


@pytest.fixture
def diagnosis() -> list[str]:
    """Return the arguments of a diagnosis that takes a few seconds."""
    return ["diagnose", "--model", "clip", "--dataset", "colours", "--dataset", "shapes", "--samples", "4"]


def test_the_document_of_a_diagnosis(document: Document, diagnosis: list[str]) -> None:
    found = document(*diagnosis, "--attack", "fgsm")
    assert (found["track"], found["protocol"], found["attack"]) == ("mini", "mini-quick-4/1", "fgsm")
    radii = [Threat(MINI.norm, eps).eps_text for eps in (Fraction(0), *MINI.eps)]
    assert [(each["model"], each["eps"]) for each in found["diagnoses"]] == [("clip", eps) for eps in radii]
    for each in found["diagnoses"]:
        assert [(part["dataset"], part["n"]) for part in each["datasets"]] == [("colours", 4), ("shapes", 4)]
        for name in ("accuracy", "modality_gap", "gradient_norm"):
            assert each[name] == pytest.approx(sum(part[name] for part in each["datasets"]) / 2)


def test_a_diagnosis_in_a_pipe_fits_the_width_and_draws_its_plot(
    diagnosis: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    figure = tmp_path / "curves.png"
    assert run_command([*diagnosis, "--eps", "0", "--eps", "5/255", "--plot", str(figure)]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert [lines[row].split()[:2] for row in (0, 1, 2)] == [["model", "eps"], ["clip", "0/255"], ["clip", "5/255"]]
    assert max(map(len, lines)) <= 80
    assert "16 of 16 samples" in printed.err and "\x1b" not in printed.out + printed.err
    with Image.open(figure) as drawn:
        assert drawn.format == "PNG" and len(drawn.convert("RGB").getcolors(10**6) or []) > 10


def test_training_commands_pass_their_options_to_the_training(
    document: Document, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []

    def train(*arguments: Any, **more: Any) -> Path:
        seen.append(arguments[:-1])
        arguments[-1](Progress(1, 2, 9.0, "loss 0.500"))
        return tmp_path / "made.json"

    monkeypatch.setattr("robustbench_vlm.training.finetune.train_defense", train)
    monkeypatch.setattr("robustbench_vlm.training.pretrain.pretrain_base", train)
    assert document("train", "tecoa", "--eps", "1/255", "--set", "lr=1e-3") == {"card": str(tmp_path / "made.json")}
    request, runtime = seen.pop()
    assert (request.defense, str(request.eps), request.settings, request.epochs) == (
        "tecoa",
        "1/255",
        {"lr": 1e-3},
        None,
    )
    assert runtime.folder == Path("trained/mini/tecoa")
    assert run_command(["pretrain", "--out", str(tmp_path)]) == 0
    assert seen.pop() == ("mini", tmp_path)
    printed = capsys.readouterr()
    assert "1 of 2 steps, about 9 s left (loss 0.500)" in printed.err
    assert f"vlmbench run --model {tmp_path / 'made.json'}" in printed.out


FOLDERS = [
    *("caltech101", "cifar10", "cifar100", "cifar10_jpeg", "dtd", "fashion_mnist", "mnist", "stl10", "sun397"),
    "tiny_imagenet",
]


@pytest.mark.parametrize("folder", FOLDERS)
def test_real_images_in_folders(folder: str, document: Document, quick: list[str]) -> None:
    if not (REAL / folder).is_dir():
        pytest.skip(f"needs the images in {REAL}")
    found = document("run", *quick, "--images", str(REAL / folder), "--samples", "8", "--prompt", "a photo of a {}.")
    (score,) = found["scores"]
    classes = [path for path in (REAL / folder).iterdir() if path.is_dir()]
    assert (score["dataset"], score["classes"], score["n"]) == (folder, len(classes), 8)


@pytest.fixture
def own_images(tmp_path: Path) -> Path:
    """Make a folder of images whose class names contain markup, terminal escapes and other scripts."""
    folder = tmp_path / "my [red]images\x1b[31m"
    for number, (name, form, mode) in enumerate(
        [
            ("[bold]cat[bold]", "png", "RGBA"),
            ("dog\x1b[2J", "jpeg", "L"),
            ("čmelák 蜂", "gif", "P"),
            ("b_b", "tiff", "1"),
        ]
    ):
        (folder / name).mkdir(parents=True)
        for side in (5, 40):
            image = Image.new("RGB", (side, side + number), (60 * number, 90, 10 * side % 256)).convert(mode)
            image.save(folder / name / f"{side}.{form}")
    return folder


def test_own_images_of_any_size_and_form(document: Document, quick: list[str], own_images: Path) -> None:
    (score,) = document("run", *quick, "--images", str(own_images), "--samples", "all")["scores"]
    assert (score["dataset"], score["classes"], score["n"]) == (own_images.name, 4, 8)


def test_terminal_escapes_in_names_have_no_effect(
    quick: list[str], own_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["run", *quick, "--images", str(own_images), "--samples", "4"]) == 0
    printed = capsys.readouterr()
    assert "my [red]images\\x1b[31m" in printed.out
    assert "4 of 8 images are used (--samples all uses all of them)" in printed.err
    assert "\x1b" not in printed.out + printed.err


def test_an_unreadable_image_is_named_or_counted(document: Document, quick: list[str], own_images: Path) -> None:
    broken = own_images / "b_b" / "5.tiff"
    broken.write_bytes(broken.read_bytes()[:40])
    options = ["run", *quick, "--images", str(own_images), "--samples", "all"]
    message = document(*options, code=2)["error"]
    assert "5.tiff" in message and "--skip-unreadable" in message
    (score,) = document(*options, "--skip-unreadable")["scores"]
    assert score["n"] == 7 and "unreadable:1" in score["warnings"]


def test_help_is_fast_and_imports_no_slow_package() -> None:
    program = (
        "import sys, robustbench_vlm.cli.main as c; c.run_command(['run', '--help']);"
        " print(*sys.modules, file=sys.stderr)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "vlmbench run --model agft --attack autoattack" in answer.stdout
    heavy = {
        "torch",
        "numpy",
        "open_clip",
        "pandas",
        "pyarrow",
        "scipy",
        "sklearn",
        "torchvision",
        "PIL",
        "matplotlib",
    }
    assert not heavy & set(answer.stderr.split())
    assert least_seconds(lambda: subprocess.run([*MODULE, "--help"], capture_output=True, check=True)) < 0.5


def test_no_arguments_print_help_and_version_prints_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([]) == 0
    assert "Commands:" in capsys.readouterr().out
    assert run_command(["--version"]) == 0
    assert re.match(r"\d+\.\d+", capsys.readouterr().out)


def test_ctrl_c_gives_a_message_and_the_same_command_continues(quick: list[str], document: Document) -> None:
    slow = ["run", *quick, "--attack", "square", "--dataset", "colours", "--samples", "64"]
    process = subprocess.Popen([*MODULE, *slow], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(Path(quick[-1]).rglob("fgsm/*/*.parquet")):
        time.sleep(0.05)
    # The first cell is written, and the slow one is in progress.
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == "" and "run the same command again to continue" in err and "Traceback" not in err
    assert document("plan", *slow[1:])["samples_on_disk"] == 64


def test_ctrl_c_gives_a_json_document_with_json(document: Document, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(kinds, "entries", interrupt)
    assert "stopped" in document("list", "models", code=130)["error"]


def test_the_process_exits_with_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["vlmbench", "show", "attack", "nonesuch"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2


def in_terminal(columns: int, command: list[str]) -> tuple[int, str]:
    """Run a command in a terminal of that width, and return its exit code and everything that it showed."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR")}
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env={**environment, "TERM": "xterm-256color"}
    ) as process:
        os.close(theirs)
        shown = b""
        # Linux reports an error when the last process has closed the terminal.
        try:
            while piece := os.read(ours, 4096):
                shown += piece
        except OSError:
            pass
    os.close(ours)
    return process.returncode, shown.decode()


def test_a_run_fits_a_narrow_terminal(quick: list[str]) -> None:
    names = ["fine-grained", "low-contrast", "handwritten"]
    datasets = [option for name in names for option in ("--dataset", name)]
    code, shown = in_terminal(60, [*MODULE, "run", *quick, "--attack", "pgd-3", *datasets, "--samples", "4"])
    assert code == 0
    assert "\x1b[1m" in shown and "samples" in shown and "left" in shown
    lines = [line for line in re.split(r"[\r\n]+", ESCAPE.sub("", shown)) if line.strip()]
    # A path is not broken, because it is one word.
    assert [line for line in lines if len(line) > 60 and "runs" not in line] == []
    for name in names:
        rows = [line.split() for line in lines if line.split()[:1] == [name]]
        assert len(rows) == 2 and all(len(row) == 6 for row in rows)


def test_messages_break_between_words_on_a_terminal() -> None:
    code, shown = in_terminal(60, [*MODULE, "show", "attack", "autoatack"])
    lines = ESCAPE.sub("", shown).splitlines()
    assert code == 2 and max(map(len, lines)) <= 60
    assert "Did you mean autoattack" in " ".join(line.strip() for line in lines)


def test_a_closed_pipe_gives_no_traceback() -> None:
    answer = subprocess.run(
        ["bash", "-c", f"{' '.join(MODULE)} list attacks | head -n 1"], capture_output=True, text=True, check=True
    )
    assert answer.stdout.startswith("adaptive") and "Traceback" not in answer.stderr
