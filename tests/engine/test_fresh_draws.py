"""Test that runs over fresh draws write, resume and check their records, and that other runs keep theirs."""

import importlib.util
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import robustbench_vlm as rvlm
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.numbers import percent
from robustbench_vlm.core.records import Accuracy, DrawnResult, SampleResult, draws_needed, wilson
from robustbench_vlm.core.registry import Registry
from robustbench_vlm.engine.arguments import command_of
from robustbench_vlm.engine.cell_records import Unsound, checked, read_run
from robustbench_vlm.engine.cost import cell_passes, cost_classifier
from robustbench_vlm.engine.eps_curve import curve_request
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resolve import resolve
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.results import RunResult
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.protocols.base import Protocol
from robustbench_vlm.protocols.describe import read_protocol

LOAD = Registry.load
ONE = Resources(device="cpu", workers=1)


def request_of(out: Path, **changes: object) -> Request:
    request = Request(
        models=("ttc+clip",), attacks=("fgsm",), datasets=("textures",), samples=3, draws=4, eot=2, out=out,
        resources=ONE,
    )  # fmt: skip
    return replace(request, **changes)


class Noise(nn.Module):
    """An image encoder with noise from torch's global generator."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images + 0.05 * torch.randn_like(images))


@pytest.fixture(scope="module")
def noisy_result(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """Return the result of a noisy model in memory, with 6 samples and 4 draws."""
    return noisy(tmp_path_factory.mktemp("noisy"), draws=4, eot=2)


def noisy(out: Path, **options: int) -> RunResult:
    made = rvlm.load_model("agft")
    model = rvlm.zero_shot(
        image_encoder=Noise(made.encoder),
        text_encoder=made.text_features,
        logit_scale=made.scale,
        image_size=32,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        name="noisy",
    )
    return rvlm.evaluate(model, "fgsm", datasets="shapes", samples=6, out=out, **options)


def test_a_run_over_draws_resumes_and_gives_equal_records(noisy_result: RunResult) -> None:
    (table,) = noisy_result.tables
    assert table.protocol == "mini-quick-6-draws-4-eot-2/1"
    (file,) = table.folder.rglob("*.parquet")
    content = file.read_bytes()
    file.unlink()
    again = noisy(table.folder.parents[2], draws=4, eot=2, batch_size=2)
    assert file.read_bytes() == content and again.fingerprint == noisy_result.fingerprint
    (evidence,) = read_run(table.folder)
    rows = evidence.results
    assert all(isinstance(row, DrawnResult) and row.draws == 4 for row in rows)
    assert table.draws is not None and table.draws.eot == 2
    shares = [row.right / row.draws for row in rows]
    assert table.draws.scores[0].robust == Accuracy.of_shares(shares) == table.draws.mean.robust
    assert table.scores[0].robust == sum(row.right == row.clean_right == 4 for row in rows) / 6
    frame = noisy_result.to_pandas()
    assert frame["robust_draws"][0] == pytest.approx(sum(shares) / 6)
    assert list(noisy_result.samples()["right"]) == [row.right for row in rows]
    assert noisy_result.to_json()["draws"]["draws"] == 4
    assert "draws" not in replace(table, draws=None).to_json()


@pytest.mark.parametrize(("change", "message"), [
    ({"right": 5}, "more correct draws than draws"),
    ({"draws": 8}, "another number of draws than its protocol"),
    ({"clean_right": 0}, "clean verdict that contradicts its draws"),
    ({"right": 0}, "a verdict that contradicts its draws"),
])  # fmt: skip
def test_forged_draws_are_rejected(noisy_result: RunResult, change: dict[str, int], message: str) -> None:
    (evidence,) = read_run(noisy_result.tables[0].folder)
    place = next(n for n, row in enumerate(evidence.results) if row.broken_by == "")
    results = list(evidence.results)
    results[place] = replace(results[place], **change)
    with pytest.raises(Unsound, match=message):
        checked(replace(evidence, results=tuple(results)))
    old = {field.name for field in fields(SampleResult)}
    without = SampleResult(**{name: value for name, value in vars(evidence.results[0]).items() if name in old})
    with pytest.raises(Unsound, match="has no draws, but its protocol has draws"):
        checked(replace(evidence, results=(without, *evidence.results[1:])))


def test_unstable_output_points_to_draws_and_draws_remove_it(tmp_path: Path, noisy_result: RunResult) -> None:
    (score,) = noisy(tmp_path).tables[0].scores
    assert "unstable-output:6" in score.warnings
    (evidence,) = read_run(noisy_result.tables[0].folder)
    assert not any("unstable-output" in code for code in evidence.score.warnings)


def test_protocols_without_draws_keep_their_fingerprint() -> None:
    for name in PROTOCOLS.names():
        protocol: Protocol = PROTOCOLS.load(name)
        assert not {"draws", "eot"} & set(protocol.identity)
    drawn = PROTOCOLS.load("mini").with_draws(100)
    assert drawn.name == "mini-draws-100" and (drawn.identity["draws"], drawn.identity["eot"]) == (100, 20)
    with pytest.raises(UserError, match="attacks in bfloat16 and decides in float32, but draws need one precision"):
        replace(PROTOCOLS.load("mini"), precision="bfloat16").with_draws(100)
    assert read_protocol(drawn.identity) == replace(drawn, description="")


def test_the_benchmark_of_random_defenses_reports_the_numbers_of_the_run(
    noisy_result: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(__file__).parents[2] / "benchmarks"
    monkeypatch.syspath_prepend(folder)
    spec = importlib.util.spec_from_file_location("random_defenses", folder / "random_defenses.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(rvlm, "evaluate", lambda *arguments, **options: noisy_result)
    row = script.measure(SimpleNamespace(model="noisy", runs="runs", samples=6), "shapes")
    *_, line = script.table({"draws": 4, "rows": [row]})
    (table,) = noisy_result.tables
    assert table.draws is not None
    (drawn,), (score,) = table.draws.scores, table.scores
    shares = [percent(value) for value in (drawn.clean.value, score.clean, drawn.robust.value, score.robust)]
    _, model, n, *cells, passes, _ = line.split("|")
    assert (model.strip(), int(n), [cell.split()[0] for cell in cells]) == ("`noisy`", 6, shares)
    assert int(passes.replace(",", "")) == sum(row.forward + row.backward for row in table_rows(noisy_result))


def table_rows(result: RunResult) -> tuple[SampleResult, ...]:
    (evidence,) = read_run(result.tables[0].folder)
    return evidence.results


def test_the_number_of_draws_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    counts = [(4, 2), (5, 2), (4, 3), (0, 0)]
    plans = [resolve(request_of(tmp_path, draws=draws, eot=eot)) for draws, eot in counts]
    assert len({plan.cells[0].fingerprint for plan in plans}) == 4
    assert "--draws 4 --eot 2" in command_of(plans[0].request)
    draws = [(stage.name, stage.gradient_mode.draws) for stage in plans[0].cells[0].attack.stages]
    assert draws == [("transfer:fgsm", 1), ("loop:fgsm", 2), ("constant:fgsm", 2)]


def test_a_protocol_may_fix_the_draws_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = PROTOCOLS.load("mini").with_samples(3).with_draws(4, 2)

    def load(registry: Registry, name: str) -> object:
        return fixed if name == fixed.name else LOAD(registry, name)

    monkeypatch.setattr(Registry, "load", load)
    request = request_of(tmp_path, protocol=fixed.name, draws=0, eot=0, samples=None)
    (cell,) = resolve(request).cells
    assert (cell.protocol.draws, cell.protocol.eot) == (4, 2)
    assert [stage.gradient_mode.draws for stage in cell.attack.stages] == [1, 2, 2]
    (changed,) = resolve(replace(request, draws=5, eot=3)).cells
    assert (changed.protocol.draws, changed.protocol.eot) == (5, 3) and changed.fingerprint != cell.fingerprint
    with pytest.raises(UserError, match="--half-width does not work with the draws of the protocol 'mini-3-draws-4"):
        resolve(replace(request, half_width=0.1))
    with pytest.raises(UserError, match="draws do not work with --eps-curve"):
        curve_request(replace(request, attacks=("min-eps",)))


def test_the_predicted_passes_are_those_of_a_robust_sample(noisy_result: RunResult, tmp_path: Path) -> None:
    (evidence,) = read_run(noisy_result.tables[0].folder)
    (cell,) = resolve(request_of(tmp_path, models=("agft",), datasets=("shapes",))).cells
    passes = cell_passes(cell, cost_classifier(cell, cell.protocol, "cpu"))
    # The final iterate of FGSM is not classified during the attack, but the prediction counts one call and two votes.
    assert passes == (28, 5)
    assert {(row.forward, row.backward) for row in evidence.results if row.broken_by == ""} == {(24, 5)}


@pytest.mark.parametrize(("changes", "message"), [
    ({"draws": 1}, "draws must be an integer from 2 to 100000, got 1: give 100"),
    ({"draws": 0, "eot": 5}, "needs --draws, got --eot 5: add --draws 100"),
    ({"draws": 4, "half_width": 0.1}, "--half-width does not work with --draws"),
    ({"models": ("clip",), "attacks": ("pyautoattack",)}, "does not say which sample an image belongs to: choose"),
])  # fmt: skip
def test_options_that_do_not_work_with_draws_are_refused(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        resolve(request_of(tmp_path, **changes))


def test_the_interval_of_shares_contains_that_of_verdicts() -> None:
    assert Accuracy.of_shares([1.0, 0.0, 1.0, 1.0]) == Accuracy(0.75, *wilson(3, 4), 4)
    assert Accuracy.of_shares([1.0] * 5).high == 1.0 and Accuracy.of_shares([0.0] * 5).low == 0.0
    assert [draws_needed(draws) for draws in (2, 99, 100, 101, 200, 201, 1000)] == [2, 99, 99, 100, 198, 199, 990]
