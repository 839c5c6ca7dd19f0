"""Disputes: images that break samples reported as robust lower the number, and other images change nothing."""

import dataclasses
import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robustbench_vlm.analysis.adversarial_images import AdversarialImages, read_images, write_images
from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.evaluate import attack_samples
from robustbench_vlm.cli.main import run_command
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.engine.model_cache import precise_classifier
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.shard import load_batch
from robustbench_vlm.leaderboard.counterexamples import images_file
from robustbench_vlm.leaderboard.dispute import BREAKS, Dispute, dispute
from robustbench_vlm.leaderboard.entry import Counterexample, read_entry, write_entry
from robustbench_vlm.leaderboard.entry_records import read_entry_records
from robustbench_vlm.leaderboard.known_verdicts import worst_known
from robustbench_vlm.leaderboard.rebuild import rebuild
from robustbench_vlm.leaderboard.verify import Draw, Verification, verify

Broken = tuple[Path, int, Tensor]


@pytest.fixture
def broken(entry_path: Path, taught_card: Path, tmp_path: Path) -> Broken:
    """Return a file of a stronger attack's images at 3/255, the number that break robust samples, and the images."""
    evidence = [
        each for each in read_entry_records(read_entry(entry_path), entry_path.parent) if each.score.eps == "3/255"
    ]
    plan, numbers = rebuild(evidence, str(taught_card))
    cell = plan.cells[numbers[0]]
    batch, _ = load_batch(cell, 0, len(cell), device="cpu")
    classifier = precise_classifier(cell.model, cell.track, cell.dataset.prompts, "cpu", "float32", "float32")
    found = attack_samples(classifier, batch, load_attack("pgd-100"), batch_size=64)
    pairs = tuple((cell.dataset.name, sample) for sample in cell.samples.ids)
    path = tmp_path / "broken.safetensors"
    write_images(AdversarialImages("mini", pairs, found.adversarial), path)
    new = sum(
        stage != "" and result.broken_by == ""
        for stage, result in zip(found.broken_by, evidence[0].results, strict=True)
    )
    return path, new, found.adversarial


def disputed(path: Path, images: Path, card: Path) -> Dispute:
    return dispute(read_entry(path), path.parent, images, date="2026-01-04", model=str(card))


def _robust(path: Path) -> float:
    entry = read_entry(path)
    known = worst_known(read_entry_records(entry, path.parent), entry.counterexamples, Threat("Linf", Fraction(3, 255)))
    return sum(known["colours"].robust) / len(known["colours"].robust)


def test_images_that_break_samples_lower_the_number(
    entry_path: Path, broken: Broken, taught_card: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, new, _ = broken
    before = _robust(entry_path)
    assert new > 0
    arguments = ["dispute", str(entry_path), "--images", str(images), "--model", str(taught_card), "--json"]
    assert run_command(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["status"] == "disputed" and document["images"][BREAKS] == new
    assert sum(document["images"].values()) == 200
    entry = read_entry(entry_path)
    assert len(entry.counterexamples) == new and entry.history[-1].facts["images"]
    assert all(0 < each.distance <= 3 / 255 + 1e-6 for each in entry.counterexamples)
    assert _robust(entry_path) == pytest.approx(before - new / 200)
    kept, digest = read_images(entry_path.parent / "counterexamples" / f"{entry.counterexamples[0].source}.safetensors")
    assert digest == entry.history[-1].facts["images"] and len(kept.images) == new
    assert set(kept.samples) == {(each.dataset, each.sample_id) for each in entry.counterexamples}
    # The entry does not change if the same images are submitted again.
    again = disputed(entry_path, images, taught_card)
    assert again.counts[BREAKS] == 0 and again.entry == entry


def test_a_verification_shows_that_a_stronger_attack_made_the_images(
    entry_path: Path, broken: Broken, taught_card: Path
) -> None:
    """The records of a weak attack are right although a stronger attack breaks many more samples."""
    images, new, _ = broken
    lowered = disputed(entry_path, images, taught_card)
    assert lowered.entry.status == "disputed"
    lowered.write(entry_path)

    def verified() -> Verification:
        about = {"date": "2026-01-05", "model": str(taught_card), "resources": Resources("cpu", workers=1)}
        return verify(read_entry(entry_path), entry_path.parent, draw=Draw(samples=60, seed=5), **about)

    found = verified()
    assert found.is_confirmed and found.entry.status == "reproduced"
    assert found.entry.counterexamples == lowered.entry.counterexamples
    # The images do not show the difference between weak and forged records, but the verification attacks their samples.
    assert found.attestation.parts[1].broken >= new
    write_entry(found.entry, entry_path)
    later = disputed(entry_path, images, taught_card)
    assert later.counts[BREAKS] == 0 and later.entry.status == "reproduced"
    # New counterexamples need a new verification.
    more = found.entry.after("2026-01-06", "counterexamples", "1 sample was broken")
    assert more.status == "disputed"


@pytest.mark.parametrize("share", [0.0, 3.0])
def test_forged_counterexamples_are_removed_and_real_ones_stay(
    share: float, entry_path: Path, broken: Broken, taught_card: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Submit images that break no sample: clean images, and adversarial images outside the radius."""
    images, new, _ = broken
    found = disputed(entry_path, images, taught_card)
    found.write(entry_path)
    handed, _ = read_images(images)
    place = dict(zip(handed.samples, range(len(handed.samples)), strict=True))
    evidence = read_entry_records(found.entry, entry_path.parent)
    taken = {each.sample_id for each in found.found}
    row = next(each for each in evidence[0].results if each.broken_by == "" and each.sample_id not in taken)
    plan, numbers = rebuild(evidence, str(taught_card))
    position = place["colours", row.sample_id]
    clean = load_batch(plan.cells[numbers[0]], position, position + 1, device="cpu")[0].images[0]
    image = clean + share * (handed.images[position] - clean)
    forged = Counterexample("colours", row.sample_id, "Linf", 0.01, (row.label + 1) % 12, "")
    source, content = images_file("mini", [(forged, image.clamp(0, 1))])
    (entry_path.parent / "counterexamples" / f"{source}.safetensors").write_bytes(content)
    write_entry(found.entry.with_counterexamples([dataclasses.replace(forged, source=source)]), entry_path)
    command = ["verify", str(entry_path), "--model", str(taught_card), "--samples", "5", "--workers", "1", "--json"]
    assert run_command(command) == 1
    assert [each["sample_id"] for each in json.loads(capsys.readouterr().out)["removed_counterexamples"]] == [
        row.sample_id
    ]
    after = read_entry(entry_path)
    assert set(after.counterexamples) == set(found.found) and len(found.found) == new
    assert after.history[-1].attestation is not None
    assert after.history[-1].attestation.problems == ("1 counterexamples break no sample on this machine",)


def test_images_outside_the_ball_or_of_no_sample_change_nothing(
    entry_path: Path, broken: Broken, taught_card: Path, tmp_path: Path
) -> None:
    _, _, adversarial = broken
    entry = read_entry(entry_path)
    ids = [result.sample_id for result in read_entry_records(entry, entry_path.parent)[0].results]
    outside = (adversarial[:3] + 0.2).clamp(0, 1)
    write_images(
        AdversarialImages("mini", tuple(("colours", sample) for sample in ids[:3]), outside), tmp_path / "outside"
    )
    assert disputed(entry_path, tmp_path / "outside", taught_card).counts["outside"] == 3
    write_images(AdversarialImages("mini", (("colours", "nobody"),), adversarial[:1]), tmp_path / "foreign")
    found = disputed(entry_path, tmp_path / "foreign", taught_card)
    assert found.counts["foreign"] == 1 and found.entry == entry
    small = torch.zeros(1, 3, 8, 8)
    write_images(AdversarialImages("mini", (("colours", ids[0]),), small), tmp_path / "small")
    assert disputed(entry_path, tmp_path / "small", taught_card).counts["outside"] == 1


def test_files_of_other_tracks_and_datasets_are_refused(entry_path: Path, taught_card: Path, tmp_path: Path) -> None:
    image = torch.zeros(1, 3, 32, 32)
    write_images(AdversarialImages("zeroshot15", (("dtd", "a"),), image), tmp_path / "x")
    with pytest.raises(UserError, match="has images of the track 'zeroshot15'"):
        disputed(entry_path, tmp_path / "x", taught_card)
    write_images(AdversarialImages("mini", (("shapes", "a"),), image), tmp_path / "y")
    with pytest.raises(UserError, match="no image of a sample in the entry"):
        disputed(entry_path, tmp_path / "y", taught_card)
