"""Submissions: the entry of a run, the remarks for reviewers, and repeated submissions of a model."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from made_up_results import attested

from robustbench_vlm.cli.main import run_command
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.engine.cell_records import Unsound, read_run
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.run import run
from robustbench_vlm.leaderboard import entry_records
from robustbench_vlm.leaderboard.entry import Counterexample, Entry, read_entry, write_entry
from robustbench_vlm.leaderboard.entry_records import read_entry_records
from robustbench_vlm.leaderboard.submit import make_submission
from robustbench_vlm.leaderboard.validate import check_continuation, check_entry


def test_the_command_writes_an_entry_with_its_records_and_the_text_of_a_pull_request(
    real_run: Path, taught_card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "submit",
        str(real_run),
        "--model",
        str(taught_card),
        "--out",
        str(tmp_path),
        "--code",
        "https://x.org",
    ]
    assert run_command([*arguments, "--note", "<b>bold</b>", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    entry = read_entry(Path(document["entry"]))
    assert document["entry"] == str(tmp_path / "mini" / "taught.json")
    assert read_entry_records(entry, tmp_path / "mini") == _without_comparisons(read_run(real_run), entry.cells)
    assert (entry.status, entry.links, entry.note) == ("claimed", {"code": "https://x.org"}, "<b>bold</b>")
    assert entry.history[0].facts == {"cells": 2, "samples": 400}
    assert "records of autoattack at 5/255 are missing for every dataset" in document["remarks"][0]
    assert "taught-image.safetensors are only on your machine" in document["remarks"][1]
    text = document["pull_request"]
    assert f"sha256 `{entry.records.sha256}`" in text and "| pgd-5 | 1/255 |" in text
    assert "vlmbench verify leaderboards/mini/taught.json" in text and str(tmp_path) not in text
    assert run_command(arguments) == 0
    assert f"run `vlmbench verify {document['entry']} --check`" in capsys.readouterr().err


def _without_comparisons(evidence: tuple[object, ...], cells: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(
        dataclasses.replace(each, score=dataclasses.replace(each.score, warnings=tuple(cell.score.warnings)))
        for each, cell in zip(evidence, cells, strict=True)
    )


def test_an_entry_contains_no_paths_or_names_of_the_machine(entry_path: Path, real_run: Path) -> None:
    text = entry_path.read_text(encoding="utf-8")
    assert str(real_run) not in text and "/tmp" not in text and str(Path.home()) not in text


def test_a_model_that_is_submitted_again_keeps_its_history(entry_path: Path, real_run: Path, taught_card: Path) -> None:
    board = entry_path.parent.parent
    first = read_entry(entry_path)
    row = next(row for row in read_entry_records(first, entry_path.parent)[0].results if row.broken_by == "")
    example = Counterexample("colours", row.sample_id, "Linf", 0.01, (row.label + 1) % 12, "0" * 64)

    def submitted(before: Entry) -> Entry:
        write_entry(before, entry_path)
        return make_submission(real_run, date="2026-02-01", model=str(taught_card), board=board).entry

    before = dataclasses.replace(attested(first, "contradicted", date="2026-01-05"), counterexamples=(example,))
    again = submitted(before)
    # The status "disputed" remains if the same records are submitted again.
    assert [event.kind for event in again.history] == ["submission", "attestation", "submission"]
    assert again.status == "disputed" and again.counterexamples == (example,)
    # It also remains with other records, until a verification reproduces them. Counterexamples follow the model.
    cells = (dataclasses.replace(first.cells[0], content="0" * 64), *first.cells[1:])
    for changes in ({"cells": cells}, {"weights": "0" * 64}):
        other = dataclasses.replace(attested(dataclasses.replace(first, **changes), "contradicted"))
        anew = submitted(dataclasses.replace(other, counterexamples=(example,)))
        assert anew.status == "disputed" and anew.counterexamples == (example,)
        assert attested(anew, machine="2" * 32).status == "reproduced"
    assert anew.history[-1].what == "submitted again with other weights"


def test_cells_that_a_run_does_not_replace_are_kept(real_run: Path, taught_card: Path, tmp_path: Path) -> None:
    whole = make_submission(real_run, date="2026-01-02", model=str(taught_card))
    whole.write(tmp_path)
    part = tmp_path / "runs" / "taught"
    shutil.copytree(real_run, part)
    manifest = part / "pgd-5" / "manifest.json"
    document = json.loads(manifest.read_text(encoding="utf-8"))
    document["cells"] = {name: cell for name, cell in document["cells"].items() if cell["score"]["eps"] == "1/255"}
    manifest.write_text(json.dumps(document), encoding="utf-8")
    again = make_submission(part, date="2026-02-01", model=str(taught_card), board=tmp_path)
    # Runs that are submitted one by one give the same entry as all of them together.
    assert (again.entry.cells, again.content) == (whole.entry.cells, whole.content)
    assert again.entry.history[-1].facts == {"cells": 2, "samples": 400}
    path = again.write(tmp_path)
    check_entry(read_entry(path), path.parent)
    check_continuation(again.entry, whole.entry, path.parent)
    half = make_submission(part, date="2026-02-01", model=str(taught_card)).entry
    less = whole.entry.after("2026-02-01", "submission", "submitted again")
    with pytest.raises(Unsound, match="records of the earlier entry are missing"):
        check_continuation(dataclasses.replace(less, cells=half.cells), whole.entry, path.parent)
    # A model with other weights is another model.
    other = dataclasses.replace(less, cells=half.cells, weights="1" * 64)
    check_continuation(other, whole.entry, path.parent)


def test_runs_that_cannot_be_submitted_are_refused(
    real_run: Path, tmp_path: Path, make_card: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["submit", str(tmp_path)]) == 2
    assert "does not contain a finished run" in capsys.readouterr().err
    with pytest.raises(UserError, match="other weights"):
        make_submission(real_run, date="2026-01-02", model=str(make_card("taught")))


def test_records_of_attack_files_are_left_out_with_a_remark(real_run: Path, taught_card: Path, tmp_path: Path) -> None:
    stage = {"name": "one", "algorithm": "pgd", "parameters": {"steps": 1}}
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"attack_file": 1, "name": "mine", "stages": [stage]}), encoding="utf-8")
    own = tmp_path / "mini" / "taught"
    run(
        Request(
            models=(str(taught_card),),
            attacks=(str(file),),
            datasets=("colours",),
            protocol="mini",
            eps=("1/255",),
            out=tmp_path,
            resources=Resources("cpu", workers=1),
        )
    )
    with pytest.raises(UserError, match="has only records of mine, but an entry needs an attack that everyone can"):
        make_submission(own, date="2026-01-02", model=str(taught_card))
    shutil.copytree(real_run / "pgd-5", own / "pgd-5")
    found = make_submission(own, date="2026-01-02", model=str(taught_card))
    assert {cell.attack for cell in found.entry.cells} == {"pgd-5"}
    assert [each for each in found.remarks if "the records of mine were left out" in each and "dispute" in each]


def test_a_run_under_another_protocol_is_refused(real_run: Path, tmp_path: Path) -> None:
    shutil.copytree(real_run, tmp_path / "taught")
    path = tmp_path / "taught" / "pgd-5" / "manifest.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"protocol": "mini/1"', '"protocol": "mini-quick/1"'))
    with pytest.raises(
        UserError, match=r"accepts only records under the protocol mini/1 .* has mini-quick/1: run `vlmbench"
    ):
        make_submission(tmp_path / "taught", date="2026-01-02")


def test_records_may_be_at_a_url(
    real_run: Path, taught_card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_submission(real_run, date="2026-01-02", model=str(taught_card), records="https://example.org/r.parquet")
    path = made.write(tmp_path / "boards")
    assert "upload it to https://example.org/r.parquet" in made.pull_request
    here = path.parent / made.entry.records.file
    here.rename(tmp_path / "r.parquet")
    fetched: list[tuple[str, str]] = []

    def download(url: str, target: Path, *, sha256: str) -> str:
        fetched.append((url, sha256))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "r.parquet", target)
        return sha256

    monkeypatch.setattr(entry_records, "download", download)
    assert len(read_entry_records(read_entry(path), path.parent)) == 2
    assert fetched == [("https://example.org/r.parquet", made.entry.records.sha256)]
    with pytest.raises(UserError, match="must begin with https://"):
        make_submission(real_run, date="2026-01-02", model=str(taught_card), records="http://example.org/r.parquet")
