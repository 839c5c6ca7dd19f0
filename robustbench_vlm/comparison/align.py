"""Align the records of several models: keep only the samples that all of them have."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.fingerprint import canonical
from robustbench_vlm.core.records import SampleResult
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.engine.cell_records import CellRecords
from robustbench_vlm.engine.results import accuracies

Key = tuple[str, str, int]
"""Sample id, digest of its pixels and label: two models share a sample if all three are equal."""

_SHARED = {"classes": "class names", "prompts": "prompts", "attack": "stages of the attack", "protocol": "protocols"}
"""Parts of an identity that must be equal for two numbers to be comparable."""


@dataclass(frozen=True)
class ModelRecords:
    """All records of one model, under a name that is unique within a comparison."""

    name: str
    evidence: tuple[CellRecords, ...]
    notes: tuple[str, ...] = ()
    """Sentences about the origin of the records, such as a dispute, that a reader should know."""


@dataclass(frozen=True)
class AlignedRecords:
    """Records of several models under one attack and threat, on the same samples in the same order."""

    models: tuple[Mapping[str, CellRecords], ...]
    """For each model, by dataset: its records and accuracies on the common samples."""
    notes: tuple[str, ...]
    """Sentences on differences between the models and on records that were left out."""

    @property
    def datasets(self) -> tuple[str, ...]:
        """Return the datasets that all models have."""
        return tuple(self.models[0])


def align(models: Sequence[ModelRecords], attack: str, threat: Threat, order: Sequence[str]) -> AlignedRecords:
    """Return the records that all models have under an attack and a threat, datasets of `order` first.

    If a model has records of several protocols, the protocol that the other models share is used. Raises UserError if
    a model has no such records (the message lists those it has) or if the models have no sample in common.
    """
    found = [
        [each for each in model.evidence if each.score.attack == attack and each.threat == threat] for model in models
    ]
    _check_found(models, found, attack, threat)
    chosen = _of_shared_protocol(found)
    shared = set.intersection(*(set(each) for each in chosen))
    common = {name: keys for name in _ordered(shared, order) if (keys := _common([each[name] for each in chosen]))}
    if not common:
        raise UserError("the models have no sample in common: run them under the same protocol to compare them")
    aligned = tuple({name: select_samples(each[name], common[name]) for name in common} for each in chosen)
    return AlignedRecords(aligned, tuple(_notes([model.name for model in models], chosen, aligned)))


def select_samples(evidence: CellRecords, keys: Iterable[Key]) -> CellRecords:
    """Return evidence reduced to the given samples, in that order, with its accuracies computed again.

    Fingerprint and identity remain those of the whole cell.
    """
    by_key = {_key(result): result for result in evidence.results}
    results = tuple(by_key[key] for key in keys)
    return replace(evidence, results=results, score=replace(evidence.score, **accuracies(results)))


def record_keys(evidence: CellRecords) -> tuple[Key, ...]:
    """Return the key of every sample, in the order of the records."""
    return tuple(_key(result) for result in evidence.results)


def _key(result: SampleResult) -> Key:
    return result.sample_id, result.image_sha256, result.label


def _check_found(
    models: Sequence[ModelRecords], found: Sequence[Sequence[CellRecords]], attack: str, threat: Threat
) -> None:
    without = [model for model, evidence in zip(models, found, strict=True) if not evidence]
    if not without:
        return
    shared = set.intersection(*({(each.score.attack, each.threat) for each in model.evidence} for model in without))
    radii: dict[str, list[str]] = {}
    for name, other in sorted(shared, key=lambda each: (each[0], each[1].norm, each[1].eps)):
        radii.setdefault(name, []).append(str(other))
    there = "; ".join(f"{name} at {', '.join(threats)}" for name, threats in radii.items()) or "nothing in common"
    raise UserError(
        f"{' and '.join(model.name for model in without)} {'has' if len(without) == 1 else 'have'} no records of"
        f" {attack} at {threat}, but: {there}; name one of these by --attack and --eps, or run what is missing"
    )


def _of_shared_protocol(found: Sequence[Sequence[CellRecords]]) -> list[dict[str, CellRecords]]:
    sizes = Counter[str]()
    for each in (each for one in found for each in one):
        sizes[each.protocol] += each.score.n
    shared = set.intersection(*({each.protocol for each in one} for one in found))
    chosen = []
    for one in found:
        label = max(shared or {each.protocol for each in one}, key=lambda name: (sizes[name], name))
        # A run lists the cells of its latest command last, so the latest wins.
        chosen.append({each.score.dataset: each for each in one if each.protocol == label})
    return chosen


def _ordered(names: Iterable[str], order: Sequence[str]) -> list[str]:
    names = set(names)
    return [name for name in order if name in names] + sorted(names - set(order))


def _common(evidence: Sequence[CellRecords]) -> list[Key]:
    shared = set.intersection(*(set(record_keys(each)) for each in evidence))
    return [key for key in record_keys(evidence[0]) if key in shared]


def _notes(
    names: Sequence[str], chosen: Sequence[Mapping[str, CellRecords]], models: Sequence[Mapping[str, CellRecords]]
) -> Iterator[str]:
    labels = [next(iter(each.values())).protocol for each in chosen]
    if len(set(labels)) > 1:
        yield "different protocols: " + ", ".join(f"{name} {label}" for name, label in zip(names, labels, strict=True))
    for key, what in _SHARED.items():
        # The protocols' names already say that they differ.
        if key == "protocol" and len(set(labels)) > 1:
            continue
        differing = [name for name in models[0] if len({canonical(each[name].identity[key]) for each in models}) > 1]
        if differing:
            yield f"different {what} on {', '.join(differing)}: these numbers are not comparable"
    if dropped := sorted({name for each in chosen for name in each} - set(models[0])):
        yield f"left out, because the models have no common samples there: {', '.join(dropped)}"
    used = sum(each.score.n for each in models[0].values())
    counts = [sum(each[name].score.n for name in models[0]) for each in chosen]
    if max(counts) > used:
        each_has = ", ".join(f"{name} has {count}" for name, count in zip(names, counts, strict=True))
        yield f"compared on the {used} samples that all have: {each_has}"
    for name, evidence in zip(names, models, strict=True):
        if len({each.identity["weights"] for each in evidence.values()}) > 1:
            yield f"{name} has records of different weights on different datasets: run it again in a new folder"
