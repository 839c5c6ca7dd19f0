"""Verification: a correct entry is confirmed, and every known way to forge an entry is detected."""

import dataclasses
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.fingerprint import fingerprint, plain
from robustbench_vlm.core.records import CLEAN, SampleResult
from robustbench_vlm.engine.cell_records import CellRecords, Unsound, data_digest
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.results import accuracies
from robustbench_vlm.leaderboard.draws import Part, choose
from robustbench_vlm.leaderboard.entry import Entry, read_entry, write_entry
from robustbench_vlm.leaderboard.entry_records import make_entry, read_entry_records, write_records
from robustbench_vlm.leaderboard.findings import Comparison, contradictions, summarize
from robustbench_vlm.leaderboard.recompute import Recomputed, Task
from robustbench_vlm.leaderboard.validate import check_entry
from robustbench_vlm.leaderboard.verify import Draw, Verification, verify
from robustbench_vlm.tracks import TRACKS

ONE = Resources("cpu", workers=1)


def verified(path: Path, card: Path, samples: int | None = 60, seed: int = 5, **draw: Any) -> Verification:
    about = Draw(samples, seed, **draw)
    return verify(read_entry(path), path.parent, date="2026-01-03", draw=about, model=str(card), resources=ONE)


def test_a_correct_entry_is_reproduced_and_then_verified(entry_path: Path, taught_card: Path) -> None:
    first = verified(entry_path, taught_card)
    attestation = first.attestation
    assert (first.entry.status, attestation.disagreements, attestation.problems) == ("reproduced", (), ())
    # The bound of Clopper and Pearson without wrong verdicts is 1 - 0.05 ** (1 / n), as a share of the robust samples.
    share = 1 - 0.05 ** (1 / 60)
    assert first.is_confirmed and attestation.bound == pytest.approx(
        max(share * part.robust / part.samples for part in attestation.parts if part.drawn < part.robust)
    )
    assert [(part.samples, part.wrong) for part in attestation.parts] == [(200, 0), (200, 0)]
    write_entry(first.entry, entry_path)
    whole = verified(entry_path, taught_card, samples=None)
    assert (whole.entry.status, whole.attestation.bound, whole.attestation.is_full) == ("verified", 0, True)
    assert all(part.first == part.robust for part in whole.attestation.parts)
    write_entry(whole.entry, entry_path)
    # A later partial verification does not lower the status of a full one.
    assert verified(entry_path, taught_card).entry.status == "verified"
    assert [event.kind for event in whole.entry.history] == ["submission", "attestation", "attestation"]


def test_each_verification_draws_a_new_seed(entry_path: Path, taught_card: Path) -> None:
    entry = read_entry(entry_path)
    found = [
        verify(entry, entry_path.parent, date="2026-01-03", draw=Draw(1), model=str(taught_card), resources=ONE)
        for _ in range(2)
    ]
    first, second = (each.attestation for each in found)
    assert first.seed != second.seed and first.machine == second.machine and len(first.machine) == 32


def forged(path: Path, change: Callable[[CellRecords], CellRecords]) -> None:
    """Write the entry with changed records, and recompute all its digests and numbers as a forger would."""
    entry = read_entry(path)
    evidence = [_consistent(change(each)) for each in read_entry_records(entry, path.parent)]
    again, content = make_entry(evidence, entry.card, entry.environment, entry.protocol.identity)
    write_records(content, path.parent / again.records.file)
    write_entry(again.after("2026-01-02", "submission", "submitted"), path)


def _consistent(evidence: CellRecords) -> CellRecords:
    identity = {**evidence.identity, "data": data_digest(evidence.results)}
    ids = [result.sample_id for result in evidence.results]
    score = dataclasses.replace(evidence.score, **accuracies(evidence.results), eps=evidence.threat.eps_text)
    print_ = fingerprint({**identity, "samples": ids})
    return dataclasses.replace(evidence, identity=identity, fingerprint=print_, score=score)


def _with(evidence: CellRecords, results: Sequence[SampleResult]) -> CellRecords:
    return dataclasses.replace(evidence, results=tuple(results))


def _robust(result: SampleResult) -> SampleResult:
    return dataclasses.replace(result, broken_by="", adversarial_prediction=result.label, distance=0.0)


def flipped(evidence: CellRecords) -> CellRecords:
    """Claim that every third broken sample is robust."""
    fallen = [n for n, result in enumerate(evidence.results) if result.broken_by not in ("", CLEAN)][::3]
    return _with(evidence, [_robust(result) if n in fallen else result for n, result in enumerate(evidence.results)])


def dropped(evidence: CellRecords) -> CellRecords:
    """Leave out every fifth sample."""
    return _with(evidence, [result for n, result in enumerate(evidence.results) if n % 5])


def foreign(evidence: CellRecords) -> CellRecords:
    """Replace a sample of the protocol by another sample."""
    return _with(evidence, [dataclasses.replace(evidence.results[0], sample_id="mine"), *evidence.results[1:]])


def better(evidence: CellRecords) -> CellRecords:
    """Claim that misclassified samples are correct and robust."""
    return _with(
        evidence,
        [
            dataclasses.replace(_robust(result), clean_prediction=result.label, margin=abs(result.margin))
            if result.broken_by == CLEAN
            else result
            for result in evidence.results
        ],
    )


def other_weights(evidence: CellRecords) -> CellRecords:
    return dataclasses.replace(evidence, identity={**evidence.identity, "weights": fingerprint("others")})


def other_eps(evidence: CellRecords) -> CellRecords:
    """Submit the records of one radius as those of a radius four times as large."""
    larger = {"1/255": "4/255", "1/85": "4/85"}[evidence.identity["threat"]["eps"]]
    return dataclasses.replace(evidence, identity={**evidence.identity, "threat": {"norm": "Linf", "eps": larger}})


def weaker_attack(evidence: CellRecords) -> CellRecords:
    attack = json.loads(json.dumps(plain(evidence.identity["attack"])))
    attack["stages"][0]["parameters"]["steps"] = 1
    return dataclasses.replace(evidence, identity={**evidence.identity, "attack": attack})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dropped, "160 samples, but the protocol requires 200"),
        (foreign, "are not those of the protocol's samples"),
        (other_weights, "other weights"),
        (weaker_attack, "differs from this package's attack of that name"),
        (better, "clean predictions in the records differ from those of the model"),
    ],
)
def test_a_forgery_is_named_if_local_weights_or_data_contradict_it(
    change: Callable[[CellRecords], CellRecords], message: str, entry_path: Path, taught_card: Path
) -> None:
    forged(entry_path, change)
    # The entry does not contradict itself, so only weights, images and the attack reveal the forgery.
    check_entry(read_entry(entry_path), entry_path.parent)
    found = verified(entry_path, taught_card)
    assert not found.is_confirmed and found.entry.status == "disputed"
    assert message in found.attestation.problems[0] and found.entry.history[-1].attestation == found.attestation


@pytest.mark.parametrize("change", [flipped, other_eps])
def test_verdicts_that_differ_when_recomputed_are_disputed(
    change: Callable[[CellRecords], CellRecords], entry_path: Path, taught_card: Path
) -> None:
    forged(entry_path, change)
    found = verified(entry_path, taught_card, samples=200)
    favourable = [each for each in found.attestation.disagreements if each.is_favourable]
    assert not found.is_confirmed and found.entry.status == "disputed" and found.attestation.problems
    assert len(favourable) >= 3 and sum(part.too_high for part in found.attestation.parts) == len(favourable)
    # The findings lower the number, whatever the status, and their images are kept.
    assert {each.sample_id for each in favourable} <= {each.sample_id for each in found.entry.counterexamples}
    paths = found.write_images(entry_path.parent)
    assert {path.stem for path in paths} == {each.source for each in found.entry.counterexamples}
    write_entry(found.entry, entry_path)
    evidence = check_entry(read_entry(entry_path), entry_path.parent)
    # The images prove the findings: a later verification classifies them and keeps them.
    assert len(evidence) == 2 and verified(entry_path, taught_card, samples=1).removed_counterexamples == ()


@pytest.fixture
def ranked_at_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the smaller radius of the test's entry as the standard radius, so that no rank depends on the larger one."""
    track = dataclasses.replace(TRACKS.load("mini"), attack="pgd-5", standard_eps=Fraction(1, 255))
    load = type(TRACKS).load
    monkeypatch.setattr(type(TRACKS), "load", lambda self, name: track if self is TRACKS else load(self, name))


@pytest.mark.usefixtures("ranked_at_one")
def test_one_forged_verdict_that_the_rank_depends_on_is_always_found(entry_path: Path, taught_card: Path) -> None:
    honest = verified(entry_path, taught_card, samples=3)
    ranked, others = honest.attestation.parts
    # The attack has one stage, so all samples of the ranked part are attacked in full.
    assert (ranked.first, ranked.bound, honest.attestation.bound) == (ranked.robust, 0, 0)
    assert (others.first, others.broken) == (3, 3) and honest.entry.status == "reproduced"

    def one(each: CellRecords) -> CellRecords:
        number = next(n for n, result in enumerate(each.results) if result.broken_by not in ("", CLEAN))
        return _with(each, [_robust(row) if n == number else row for n, row in enumerate(each.results)])

    forged(entry_path, lambda each: one(each) if each.threat.eps == Fraction(1, 255) else each)
    found = verified(entry_path, taught_card, samples=3)
    assert found.attestation.parts[0].too_high == len(found.entry.counterexamples) == 1
    # The forger changes another record, so the digests are new. The sample is attacked again in any case.
    write_entry(found.entry, entry_path)
    found.write_images(entry_path.parent)
    entry = read_entry(entry_path)
    assert entry.status == "disputed"
    evidence = [dataclasses.replace(each) for each in read_entry_records(entry, entry_path.parent)]
    more = [dataclasses.replace(row, forward=row.forward + 1) for row in evidence[1].results]
    evidence[1] = _with(evidence[1], more)
    again, content = make_entry(evidence, entry.card, entry.environment, entry.protocol.identity)
    write_records(content, entry_path.parent / again.records.file)
    again = dataclasses.replace(again, history=entry.history, counterexamples=entry.counterexamples)
    again = again.after("2026-01-03", "submission", "submitted again")
    assert again.subject != entry.subject and again.status == "disputed"


def test_some_datasets_are_verified_and_attempts_draw_more_samples(entry_path: Path, taught_card: Path) -> None:
    found = verified(entry_path, taught_card, samples=5, attempt=3, datasets=("colours",))
    assert (found.attestation.datasets, found.attestation.attempt) == (("colours",), 3)
    assert [part.drawn for part in found.attestation.parts] == [15, 15]
    with pytest.raises(UserError, match="the entry has no records of the dataset 'shapes': give some of colours"):
        verified(entry_path, taught_card, datasets=("shapes",))


def test_other_fields_of_the_records_are_compared(entry_path: Path, taught_card: Path) -> None:
    """Change fields of all samples for which any value of the field is possible."""

    def other(each: CellRecords) -> CellRecords:
        rows = [
            dataclasses.replace(row, distance=1e-6)
            if row.broken_by == "pgd-5"
            else dataclasses.replace(row, forward=row.forward - 1 if row.broken_by == "" else row.forward)
            for row in each.results
        ]
        return _with(each, rows)

    def margin(each: CellRecords) -> CellRecords:
        return _with(each, [dataclasses.replace(row, margin=0.9) if row.margin > 0 else row for row in each.results])

    forged(entry_path, other)
    found = verified(entry_path, taught_card, samples=3)
    reasons = {each.reason.partition(" ")[0] for each in found.attestation.disagreements}
    # Records are equal bit by bit on this machine, so distances and passes need no tolerance.
    assert not found.is_confirmed and reasons == {"equal"}
    forged(entry_path, margin)
    found = verified(entry_path, taught_card, samples=3)
    assert not found.is_confirmed and "the margins of" in found.attestation.problems[0]


def test_rounding_explains_only_verdicts_near_the_decision_boundary(entry_path: Path) -> None:
    cell = read_entry_records(read_entry(entry_path), entry_path.parent)[1]
    position = next(n for n, row in enumerate(cell.results) if row.broken_by == "")
    stored = cell.results[position]
    fallen = dataclasses.replace(stored, broken_by="pgd-5", adversarial_prediction=stored.label + 1, distance=0.004)

    def reason(here: SampleResult, margin: float, *, equal: bool = False) -> str:
        return Comparison(cell, Task(1, 1, position), Recomputed(here, margin, None), equal).reason

    assert reason(stored, 0.1) == reason(stored, 0.1, equal=True) == "" == reason(fallen, -1e-5)
    assert "the margin -0.0200" in reason(fallen, -0.02)
    near = dataclasses.replace(fallen, distance=1e-6)
    broken = next(n for n, row in enumerate(cell.results) if row.broken_by == "pgd-5")
    other = Comparison(cell, Task(1, 1, broken), Recomputed(dataclasses.replace(near, label=0), -0.5, None), False)
    assert "the distance is" in other.reason and "1e-06 here" in other.reason
    # Records are equal bit by bit on equal hardware, so rounding explains nothing there.
    assert reason(fallen, -1e-5, equal=True) == "equal hardware and software give another record"


def excused(evidence: CellRecords) -> CellRecords:
    """Claim that misclassified samples are correct by a tiny margin, and broken."""
    return _with(
        evidence,
        [
            dataclasses.replace(
                result,
                clean_prediction=result.label,
                adversarial_prediction=result.clean_prediction,
                broken_by="pgd-5",
                distance=1e-3,
                margin=0.0,
            )
            if result.broken_by == CLEAN
            else result
            for result in evidence.results
        ],
    )


def sabotaged(evidence: CellRecords) -> CellRecords:
    """Claim that every robust sample is broken, as a competitor might."""
    other = {result.label: (result.label + 1) % 12 for result in evidence.results}
    return _with(
        evidence,
        [
            dataclasses.replace(result, broken_by="pgd-5", adversarial_prediction=other[result.label], distance=1e-3)
            if result.broken_by == ""
            else result
            for result in evidence.results
        ],
    )


def test_a_small_stored_margin_does_not_excuse_a_clean_prediction(entry_path: Path, taught_card: Path) -> None:
    stage = read_entry(entry_path).attacks["pgd-5"][0]["name"]
    assert stage == "pgd-5", "the forgeries use this name"
    forged(entry_path, excused)
    found = verified(entry_path, taught_card)
    assert (
        found.entry.status == "disputed"
        and "clean predictions in the records differ from those of the model" in found.attestation.problems[0]
    )


def test_records_that_lower_a_number_are_disputed(entry_path: Path, taught_card: Path) -> None:
    forged(entry_path, sabotaged)
    for samples in (200, None):
        found = verified(entry_path, taught_card, samples=samples)
        assert not found.is_confirmed and found.entry.status == "disputed"
        wrong = found.attestation.disagreements
        assert wrong and not any(each.is_favourable for each in wrong)


def test_missing_warnings_are_reported(entry_path: Path) -> None:
    stored = read_entry_records(read_entry(entry_path), entry_path.parent)[0]
    rows = stored.results[:20]
    warned = [dataclasses.replace(row, warnings="zero-gradient,unstable-output") for row in rows]

    def problems(cell: CellRecords, here: Sequence[SampleResult]) -> list[str]:
        found = [Comparison(cell, Task(0, 1, n), Recomputed(row, 0.5, None), False) for n, row in enumerate(here)]
        return contradictions(found, summarize(found, [cell], (), 0))

    assert problems(stored, rows) == problems(_with(stored, warned), rows) == []
    (problem,) = problems(stored, warned)
    assert problem.endswith("the records of 20 samples lack the warnings unstable-output, zero-gradient")
    # A single difference may come from rounding on another machine.
    assert problems(stored, [warned[0], *stored.results[1:]]) == []


def _edit(path: Path, change: Callable[[dict[str, object]], None]) -> Entry:
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")
    return read_entry(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry["cells"][0]["score"].update(robust=0.99), "different accuracies"),
        (
            lambda entry: entry["cells"][0]["score"].update(n=199),
            "the number of rows are not the expected ones",
        ),
        (lambda entry: entry["cells"][0].update(fingerprint="0" * 64), "do not match their fingerprint"),
        (lambda entry: entry["cells"][0].update(content="0" * 64), "have changed since the entry was written"),
        (
            lambda entry: entry["cells"][0].update(threat={"norm": "Linf", "eps": "1/2"}),
            "do not match their fingerprint",
        ),
        (lambda entry: entry["datasets"]["colours"].update(data="0" * 64), "do not match their data digest"),
        (lambda entry: entry["records"].update(sha256="0" * 64), "is not the one in the entry"),
        (lambda entry: entry["cells"].pop(), "the number of rows are not the expected ones"),
        (lambda entry: entry["protocol"].update(label="mini-quick/1"), "must be mini/1, got mini-quick/1"),
        (lambda entry: entry["card"].update(name="agft"), "must be that of the entry.s model .taught., got .agft."),
        (lambda entry: entry["datasets"].clear() or entry["datasets"].update(shapes=DATASET), "lacks class names"),
    ],
)
def test_an_edited_entry_is_refused_before_any_attack(
    change: Callable[[dict[str, object]], None], message: str, entry_path: Path
) -> None:
    with pytest.raises(Unsound, match=message):
        check_entry(_edit(entry_path, change), entry_path.parent)


EXAMPLE = {"dataset": "a", "sample_id": "1", "norm": "Linf", "distance": 1, "prediction": 1, "source": ""}
DATASET = {"classes": ["a", "b"], "prompts": ["a", "b"], "data": "0" * 64}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.pop("cells"), "cells: this field is required"),
        (lambda entry: entry.update(more=1), "more: unknown field"),
        (lambda entry: entry["cells"][0]["score"].update(robust=1.5), "cells/0/score/robust"),
        (lambda entry: entry.update(model="../../evil"), "model"),
        (lambda entry: entry["records"].update(file="records/../../evil.parquet"), "records/file"),
        (lambda entry: entry["records"].update(url="javascript:alert(1)"), "records/url"),
        (lambda entry: entry.update(status="excellent"), "status"),
        (lambda entry: entry["counterexamples"].append(EXAMPLE | {"distance": 10**6}), "counterexamples/0/distance"),
    ],
)
def test_an_entry_with_invalid_fields_is_refused(
    change: Callable[[dict[str, object]], None], message: str, entry_path: Path
) -> None:
    with pytest.raises(UserError, match=r"^the entry .*taught.json: " + message):
        _edit(entry_path, change)


def test_an_entry_that_is_nested_too_deep_is_refused(entry_path: Path) -> None:
    deep: list[object] = []
    for _ in range(300):
        deep = [deep]
    with pytest.raises(UserError, match="nested deeper"):
        _edit(entry_path, lambda entry: entry["history"][0]["facts"].update(a=deep))


def test_a_negative_number_of_passes_is_refused(entry_path: Path) -> None:
    def negative(evidence: CellRecords) -> CellRecords:
        return _with(evidence, [dataclasses.replace(result, forward=-1) for result in evidence.results])

    entry = read_entry(entry_path)
    evidence = [dataclasses.replace(negative(each)) for each in read_entry_records(entry, entry_path.parent)]
    again, content = make_entry(evidence, entry.card, (), entry.protocol.identity)
    write_records(content, entry_path.parent / again.records.file)
    with pytest.raises(Unsound, match="has a negative number of passes"):
        check_entry(again, entry_path.parent)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b'{"format": 1}', b"<html>"])
def test_a_file_that_is_not_an_entry_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match="the entry"):
        read_entry(tmp_path / "x.json")


def test_damaged_records_are_refused(entry_path: Path) -> None:
    entry = read_entry(entry_path)
    records = entry_path.parent / entry.records.file
    records.write_bytes(b"PAR1 not at all")
    with pytest.raises(Unsound, match="is not the one in the entry"):
        check_entry(entry, entry_path.parent)
    records.unlink()
    with pytest.raises(UserError, match=r"the records of 'taught' are not at") as told:
        check_entry(entry, entry_path.parent)
    assert not isinstance(told.value, Unsound)


def test_unpublished_weights_are_an_error_that_asks_for_a_card_file(entry_path: Path) -> None:
    with pytest.raises(UserError, match=r"were never published.*--model"):
        verify(read_entry(entry_path), entry_path.parent, date="2026-01-03", resources=ONE)


def test_equal_records_give_equal_bytes(entry_path: Path) -> None:
    entry = read_entry(entry_path)
    evidence = read_entry_records(entry, entry_path.parent)
    again = [make_entry(evidence, entry.card, (), {})[1] for _ in range(2)]
    assert again[0] == again[1] == (entry_path.parent / entry.records.file).read_bytes()


def test_few_samples_are_attacked_with_late_stages(entry_path: Path) -> None:
    evidence = read_entry_records(read_entry(entry_path), entry_path.parent)
    rows = tuple(
        dataclasses.replace(evidence[0].results[0], broken_by=broken_by)
        for broken_by in ("apgd-ce",) * 30 + ("square",) * 20 + ("",) * 50
    )
    identity = {**evidence[0].identity, "attack": {"stages": [{"name": "apgd-ce"}, {"name": "square"}]}}
    cell = dataclasses.replace(evidence[0], identity=identity, results=rows)
    choice = choose([cell], Part((0,), is_ranked=True), 8, random.Random(0))
    stages = Counter(task.stages for task in choice.others)
    assert stages == {1: 30, 2: 8} and len(choice.robust) == 50
    assert (choice.number, choice.nearest) == (8, 16)
    few = dataclasses.replace(cell, results=rows[:60])
    assert choose([few], Part((0,), is_ranked=True), 8, random.Random(0)).nearest == 5
