"""The Python interface: its functions, and results that are equal to those of the command line."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

import robustbench_vlm
from robustbench_vlm import benchmark, compare, evaluate, load_attack, load_dataset, load_leaderboard, load_model
from robustbench_vlm.attacks.evaluate import attack_samples
from robustbench_vlm.cli.main import run_command
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import cache_folder
from robustbench_vlm.core.records import CLEAN
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.datasets.base import image_sha256
from robustbench_vlm.datasets.published.local_copy import data_root
from robustbench_vlm.engine.results import RunResult
from robustbench_vlm.leaderboard.submit import make_submission
from robustbench_vlm.protocols.mini import MINI_QUICK

SETS = ("colours", "shapes")


@pytest.fixture(scope="module")
def result(taught_card: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    out = tmp_path_factory.mktemp("api") / "runs"
    return evaluate(str(taught_card), ["fgsm", "pgd-3"], datasets=SETS, eps=("1/255", "32/255"), out=out, workers=1)


def test_importing_the_package_does_not_import_torch() -> None:
    program = "import sys, robustbench_vlm; print('torch' in sys.modules, *dir(robustbench_vlm))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    is_heavy, *names = answer.stdout.split()
    assert is_heavy == "False" and set(robustbench_vlm.__all__) <= set(names)


def test_benchmark_takes_the_arguments_of_robustbench(tmp_path: Path) -> None:
    arguments: Any = {"attacks": "fgsm", "out": tmp_path, "workers": 1}
    with pytest.warns(UserWarning, match=r"^textures: \S+: .+: .+"):
        clean, robust = benchmark(
            "clip", dataset="textures", threat_model="Linf", eps=8 / 255, n_examples=4, **arguments
        )
    with pytest.warns(UserWarning, match="^textures"), pytest.warns(UserWarning, match="to_disk=False is ignored"):
        found = benchmark(
            "clip", "textures", 8 / 255, n_examples=4, batch_size=2, to_disk=False, log_path=None, **arguments
        )
    assert found == (clean, robust)
    scores = (
        evaluate("clip", "fgsm", datasets="textures", eps="8/255", samples=4, out=tmp_path, workers=1).tables[0].scores
    )
    assert (clean, robust) == (scores[0].clean_accuracy.value, scores[0].robust_accuracy.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.nn.Identity(), "shapes", "4/255"), "got Identity: write zero_shot.* use attack"),
        ((["clip", "agft"], "shapes", "4/255"), "takes one model, got a list"),
        (("clip", "shapes", 1.5), "eps 1.5 is larger than 1"),
        (("clip", "shapes", float("nan")), "eps must be a number or a text"),
        (("clip", "shapes", None), "needs a radius"),
        (("clip", "nonesuch", "4/255"), "nonesuch"),
        (("clip", 5, "4/255"), "datasets must be names, got int"),
        (("clip", "shapes", "4/255", {"model_name": "x"}), "model_name='x' renames .* got 'clip': leave it out"),
        (("clip", "shapes", "4/255", {"version": "rand"}), "cannot use version='rand' of RobustBench: .*attacks="),
        (("clip", "shapes", "4/255", {"nonesuch": 1}), "no argument 'nonesuch': .*attacks, track"),
        (("clip", "shapes", "4/255", {"batch_size": -1}), "batch_size must be an integer of 0 or more, got -1"),
    ],
)
def test_benchmark_says_what_it_takes(arguments: Any, message: str) -> None:
    options = arguments[3] if len(arguments) == 4 else {}
    with pytest.raises(UserError, match=message):
        benchmark(*arguments[:3], **options)
    with pytest.raises(UserError, match="RobustBench"):
        benchmark("clip", "shapes", "4/255", threat_model="corruptions")


def test_exported_names_can_be_imported() -> None:
    for name in robustbench_vlm.__all__:
        assert getattr(robustbench_vlm, name)
    with pytest.raises(AttributeError, match="nonesuch"):
        robustbench_vlm.nonesuch  # noqa: B018


def test_no_module_has_the_name_of_an_exported_function() -> None:
    parts = {path.stem for path in Path(robustbench_vlm.__file__).parent.iterdir()}
    assert not parts & set(robustbench_vlm.__all__)


def test_a_model_classifies_the_samples_of_a_dataset() -> None:
    pictures = load_dataset("handwritten")
    assert len(pictures) == MINI_QUICK.samples and pictures.images.dtype == torch.float32
    assert 0 <= pictures.images.min() < pictures.images.max() <= 1
    classifier = load_model("agft").classifier(pictures.prompts)
    assert isinstance(classifier, torch.nn.Module)
    images = pictures.images.clone().requires_grad_(True)
    logits = classifier(images)
    assert logits.shape == (len(pictures), len(pictures.classes)) and logits.dtype == torch.float32
    logits.sum().backward()
    assert images.grad is not None and bool(images.grad.any())
    assert float((logits.argmax(dim=1) == pictures.labels).float().mean()) > 0.5


def test_load_dataset_returns_the_samples_of_the_protocol_in_its_order(result: RunResult) -> None:
    records = result.samples().query("dataset == 'colours' and attack == 'fgsm' and eps == '1/255'")
    pictures = load_dataset("colours")
    assert list(records.sample_id) == list(pictures.ids) and list(records.label) == pictures.labels.tolist()
    digests = [image_sha256((image * 255).round().to(torch.uint8)) for image in pictures.images]
    assert list(records.image_sha256) == digests
    more = load_dataset("colours", samples=20)
    assert more.ids[: len(pictures)] == pictures.ids and len(more) == 20
    assert len(load_dataset("handwritten", samples="all")) == len(DATASETS.load("handwritten").open().ids)


def test_published_datasets_have_the_prompts_of_the_protocol(library: Path) -> None:
    pictures = load_dataset("cifar10", track="zeroshot15", samples=4, data=library)
    assert pictures.images.shape == (4, 3, 32, 32) and pictures.prompts[0] == "This is a photo of a airplane."
    other = load_dataset("cifar10", protocol="fare-2024", samples=4, data=library)
    assert len(other.prompts[0]) == 18 and other.ids == pictures.ids


def test_attack_samples_gives_the_results_of_the_run(result: RunResult, taught_card: Path) -> None:
    pictures = load_dataset("colours")
    classifier = load_model(str(taught_card), device="cpu").classifier(pictures.prompts)
    verdict = attack_samples(classifier, pictures.batch("32/255"), load_attack("pgd-3"), batch_size=3)
    records = result.samples().query("dataset == 'colours' and attack == 'pgd-3' and eps == '32/255'")
    assert list(verdict.broken_by) == list(records.broken_by) and "pgd-3" in verdict.broken_by


def test_a_card_file_may_be_a_path(taught_card: Path) -> None:
    assert load_model(taught_card, device="cpu").digest == load_model(str(taught_card), device="cpu").digest
    with pytest.raises(UserError, match=r"nowhere\.json"):
        evaluate(Path("nowhere.json"), "fgsm", samples=2)


def test_of_samples_works_with_and_without_a_test_time_defense() -> None:
    pictures = load_dataset("colours", samples=3)
    for name in ("clip", "ttc+clip"):
        classifier = load_model(name, device="cpu").classifier(pictures.prompts).of_samples(pictures.keys)
        assert classifier(pictures.images).shape == (3, len(pictures.classes))


def test_to_pandas_has_one_row_per_score(result: RunResult) -> None:
    frame = result.to_pandas()
    grid = [(a, e, d) for a in ("fgsm", "pgd-3") for e in ("1/255", "32/255") for d in SETS]
    assert list(zip(frame.attack, frame.eps, frame.dataset, strict=True)) == grid
    assert set(frame.model) == {"taught"} and set(frame.n) == {MINI_QUICK.samples}
    for row, score in zip(frame.itertuples(), (s for t in result.tables for s in t.scores), strict=True):
        assert (row.clean, row.robust) == (score.clean, score.robust)
        assert (row.clean_low, row.clean_high, row.robust_low, row.robust_high) == (
            *score.clean_interval,
            *score.robust_interval,
        )
        assert row.warnings == " ".join(score.warnings)


def test_the_records_reproduce_the_scores(result: RunResult) -> None:
    frame = result.to_pandas().set_index(["attack", "eps", "dataset"])
    for key, rows in result.samples().groupby(["attack", "eps", "dataset"]):
        assert (rows.broken_by == "").mean() == frame.loc[key, "robust"]
        assert (rows.broken_by != CLEAN).mean() == frame.loc[key, "clean"]


def test_missing_or_changed_records_are_reported(taught_card: Path, tmp_path: Path) -> None:
    found = evaluate(str(taught_card), "fgsm", datasets="colours", samples=4, out=tmp_path, workers=1)
    (path,) = tmp_path.rglob("*.parquet")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="damaged"):
        found.samples()
    path.unlink()
    with pytest.raises(UserError, match=r"has 0 records, but \d+ are expected"):
        found.samples()


def test_the_command_line_reuses_the_records_and_gives_the_same_result(
    result: RunResult, taught_card: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = result.tables[0].folder.parents[2]
    command = json.loads((result.tables[0].folder / "manifest.json").read_text())["command"]
    assert command.startswith(f"vlmbench run --model {taught_card} --attack fgsm --attack pgd-3 --dataset colours")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    assert run_command([*command.split()[1:], "--out", str(out), "--workers", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fingerprint"] == result.fingerprint
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}


def test_compare_counts_the_samples_on_which_two_models_differ(
    result: RunResult, make_card: Callable[..., Path]
) -> None:
    out = result.tables[0].folder.parents[2]
    other = evaluate(str(make_card()), "fgsm", datasets=SETS, eps="1/255", out=out, workers=1)
    found = compare(["taught", "untrained"], "fgsm", eps="1/255", runs=out)
    assert [model.name for model in found.models] == ["taught", "untrained"] and found.datasets == ("shapes", "colours")
    frames = (result.samples().query("attack == 'fgsm' and eps == '1/255'"), other.samples())
    taught, untrained = (frame[frame.dataset == "colours"].broken_by.to_numpy() == "" for frame in frames)
    (pair,) = [pair for pair in found.pairs if pair.measure == "robust"]
    assert pair.datasets["colours"].only_first == int((taught & ~untrained).sum()) > 0
    with pytest.raises(
        UserError, match=r"unknown result 'nonesuch'.* looked up in the leaderboard of 'mini' and the folder"
    ):
        compare(["taught", "nonesuch"], runs=out)


def test_compare_without_runs_does_not_read_the_current_folder(
    taught_card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evaluate(str(taught_card), "fgsm", datasets="colours", eps="1/255", samples=4, workers=1)
    assert (tmp_path / "runs" / "mini" / "taught").is_dir()
    with pytest.raises(UserError, match=r"unknown result 'taught'.* looked up in the leaderboard of 'mini'\."):
        compare("taught", "fgsm", eps="1/255")
    assert compare("taught", "fgsm", eps="1/255", runs="runs").models[0].name == "taught"


def test_a_leading_tilde_is_the_home_folder_for_every_path(
    taught_card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    shutil.copytree(taught_card.parent, home / "cards")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    card = f"~/cards/{taught_card.name}"
    arguments: dict[str, Any] = {"datasets": "colours", "eps": "1/255", "samples": 4, "workers": 1}
    first = evaluate(card, "fgsm", out="~/runs", **arguments)
    written = {path: path.stat().st_mtime_ns for path in home.rglob("*.parquet")}
    assert len(written) == 1 and len(first.samples()) == 4
    assert evaluate(card, "fgsm", out=Path("~/runs"), **arguments).tables[0].seconds == 0
    command = ["run", "--model", card, "--attack", "fgsm", "--dataset", "colours", "--eps", "1/255", "--samples", "4"]
    assert run_command([*command, "--workers", "1", "--out=~/runs"]) == 0
    assert run_command([*command, "--workers", "1", "--out", "~/runs"]) == 0
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*.parquet")} == written
    assert compare("taught", "fgsm", eps="1/255", runs="~/runs").models[0].name == "taught"
    assert compare("~/runs/mini/taught", "fgsm", eps="1/255").models[0].name == "taught"
    assert load_model(card).name == "taught"
    for variable, folder in (("VLMBENCH_DATA", data_root), ("VLMBENCH_CACHE", cache_folder)):
        monkeypatch.setenv(variable, "~/place")
        assert folder() == home / "place"
    assert data_root(Path("~/data")) == home / "data"
    assert not list(work.iterdir())
    with pytest.raises(UserError, match="home folder of this user is unknown: give the full path"):
        evaluate(card, "fgsm", out="~no-such-user/runs", **arguments)


def test_a_leaderboard_is_converted_to_pandas(taught_card: Path, tmp_path: Path) -> None:
    evaluate(str(taught_card), "fgsm", datasets="colours", protocol="mini", out=tmp_path / "runs", workers=1)
    made = make_submission(tmp_path / "runs" / "mini" / "taught", date="2026-01-02", model=str(taught_card))
    made.write(tmp_path / "boards")
    board = load_leaderboard("mini", tmp_path / "boards" / "mini")
    (row,) = board.to_pandas().itertuples()
    assert (row.model, row.status, row.rank) == ("taught", "claimed", "")
    assert 0 <= row.robust_low <= row.robust <= row.robust_high <= row.clean_high
    packaged = load_leaderboard("mini")
    assert list(packaged.to_pandas().get("model", [])) == [each.model for each in packaged.rows]


def test_on_progress_is_called(taught_card: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    evaluate(
        str(taught_card),
        "fgsm",
        datasets=["colours"],
        eps=Fraction(1, 255),
        samples=3,
        out=tmp_path,
        workers=1,
        on_progress=lambda progress: told.append((progress.done, progress.total)),
    )
    assert told[0] == (0, 3) and told[-1] == (3, 3)


def test_a_script_without_a_main_guard_may_use_several_processes(taught_card: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from robustbench_vlm import evaluate\n"
        "print('begun', flush=True)\n"
        "found = evaluate(sys.argv[1], 'fgsm', datasets='colours', samples=70, out=sys.argv[2], workers=2)\n"
        "print(len(found.samples()))\n"
    )
    arguments = [sys.executable, str(script), str(taught_card), str(tmp_path / "runs")]
    answer = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert (answer.stdout, answer.returncode) == ("begun\n70\n", 0), answer.stderr


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.nn.Linear(1, 1),), {}, "models must be names, .*, got Linear: write zero_shot"),
        ((["clip", torch.nn.Linear(1, 1)],), {}, "models must be names"),
        (("clip", print), {}, "attacks must be names.*entry point"),
        (("clip", "fgsm"), {"datasets": [3]}, "datasets must be names"),
        (("clip", "fgsm"), {"eps": True}, "got the bool True"),
        (("clip", "fgsm"), {"eps": ["1/255", 2]}, "eps 2 is larger than 1"),
        (("clip", "fgsm"), {"samples": 0}, "samples must be a positive integer or .all., got 0"),
        (("clip", "fgsm"), {"samples": "some"}, "got 'some'"),
        ((), {"models": []}, "no model is given"),
        (("nonesuch",), {}, "unknown model 'nonesuch'"),
        (("clip", "fgsm"), {"name": "x"}, "renames one model made by zero_shot, got 'clip', which has a name"),
        (("clip", "fgsm"), {"workers": "2"}, "workers must be an integer of 0 or more, got '2'"),
        (("clip", "fgsm"), {"track": "minni"}, "unknown track 'minni'. Did you mean mini"),
    ],
)
def test_wrong_arguments_are_refused_with_a_message(
    arguments: tuple[Any, ...], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(*arguments, **options, out=tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_result_can_be_pickled(result: RunResult) -> None:
    assert pickle.loads(pickle.dumps(result)).to_pandas().equals(result.to_pandas())
