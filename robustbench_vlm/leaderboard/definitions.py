"""The check that the definitions of an entry are those of this package: card, protocol, attacks, classes, warnings."""

from collections.abc import Sequence

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.base import Attack
from robustbench_vlm.core.files import package_folder
from robustbench_vlm.core.fingerprint import fingerprint, plain
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.datasets.base import Dataset
from robustbench_vlm.engine.cell_records import CellRecords, Unsound
from robustbench_vlm.engine.warnings import attack_warnings, warning_counts
from robustbench_vlm.leaderboard.entry import Entry
from robustbench_vlm.leaderboard.record_ranges import check_passes
from robustbench_vlm.models import card_names
from robustbench_vlm.models.card import read_card
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.protocols.base import Protocol
from robustbench_vlm.tracks import TRACKS

_LEFT_OUT = {"unreadable", "incomplete"}
"""Codes of warnings about a dataset with fewer samples than the protocol requires. Every score on such a dataset must
have one of these warnings.
"""
_PROSE = {"notes", "reported", "folder"}
"""Fields in which the model card of an entry may differ from the card in the model zoo. No result depends on them."""


def check_definitions(entry: Entry, evidence: Sequence[CellRecords]) -> None:
    """Raise Unsound if a definition in the entry differs from the definition in this package.

    The definitions are the card, the protocol, the attacks, the classes, the prompts and the sample counts. The attacks
    on a model with a test-time defense depend on the loaded model, so only `verify` checks these attacks.
    """
    from robustbench_vlm.test_time.defended_model import checked_reference

    _check_card(entry)
    protocol: Protocol = PROTOCOLS.load(TRACKS.load(entry.track).leaderboard_protocol)
    if not _is_equal(entry.protocol.identity, protocol.identity):
        raise Unsound(
            f"the protocol {protocol.label} of the entry differs from this package's protocol of that name:"
            " run the model again with this version"
        )
    is_test_time_defense = bool(checked_reference(entry.model).defense)
    for each in evidence:
        name, norm = each.score.attack, each.threat.norm
        attack = protocol.adapt_attack(load_attack(name), norm)
        stages = [stage.identity for stage in attack.stages]
        if not is_test_time_defense and not _is_equal(each.identity["attack"]["stages"], stages):
            raise Unsound(
                f"the attack {name} of the entry differs from this package's attack of that name: run it again with"
                " this version"
            )
        dataset: Dataset = protocol.adapt_dataset(DATASETS.load(each.score.dataset))
        if not _is_equal([each.identity["classes"], each.identity["prompts"]], [dataset.classes, dataset.prompts]):
            raise Unsound(
                f"the classes or prompts of {dataset.name} differ from the protocol's: run the protocol again"
            )
        codes = {warning.partition(":")[0] for warning in each.score.warnings}
        if protocol.samples is not None and each.score.n != protocol.samples and not codes & _LEFT_OUT:
            raise Unsound(
                f"{dataset.name} has {each.score.n} samples, but the protocol requires {protocol.samples}: run all of"
                " them"
            )
        if not is_test_time_defense and not each.stages:
            _check_warnings(each, attack)
    check_passes(entry, evidence)


def _check_warnings(records: CellRecords, attack: Attack) -> None:
    """Raise Unsound if the score of a cell lacks warnings that its records raise, such as those of masked gradients.

    Some of these warnings take the rank of a model away, so an author could gain by leaving them out.
    """
    broken_by = [result.broken_by for result in records.results]
    raised = attack_warnings(attack, broken_by, warning_counts(records.results))
    if absent := set(raised) - set(records.score.warnings):
        score = records.score
        raise Unsound(
            f"the score of {score.attack} on {score.dataset} lacks the warnings {', '.join(sorted(absent))}, which its"
            " records raise: submit the run again"
        )


def _check_card(entry: Entry) -> None:
    """Raise Unsound if the model card in an entry differs from the card with the same name in the model zoo."""
    name = entry.card["name"]
    if name not in card_names(entry.track):
        return
    bundled = read_card(package_folder("model_zoo") / entry.track / f"{name}.json")
    expected = {key: value for key, value in plain(bundled).items() if key not in _PROSE}
    if bundled.has_weights and (
        other := [key for key, value in expected.items() if not _is_equal(entry.card.get(key), value)]
    ):
        raise Unsound(
            f"the card of {name!r} differs from its card in the model zoo in {', '.join(other)}: give another model"
            " name, or restore the card"
        )


def _is_equal(first: object, second: object) -> bool:
    return fingerprint(plain(first)) == fingerprint(plain(second))
