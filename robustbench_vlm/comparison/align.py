"""Align the records of several models: keep only the samples that all models have."""

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
"""Sample id, digest of the pixels, and label. Two records are of the same sample if they are equal in all three."""

_SHARED = {"classes": "class names", "prompts": "prompts", "attack": "stages of the attack", "protocol": "protocols"}
"""Settings that must be equal for two accuracies to be comparable. The keys are keys of `CellRecords.identity`. The
values are the names of the settings in messages.
"""


@dataclass(frozen=True)
class ModelRecords:
    """All records of one model. No two models of a comparison have the same name."""

    name: str
    evidence: tuple[CellRecords, ...]
    """The records of every cell of the model. A cell is one model under one attack on one dataset at one radius."""
    notes: tuple[str, ...] = ()
    """Sentences about the records, for example that another user disputes the result on the leaderboard."""


@dataclass(frozen=True)
class AlignedRecords:
    """Records of several models under one attack and threat, on the same samples in the same order."""

    models: tuple[Mapping[str, CellRecords], ...]
    """For each model, a mapping from dataset names to `CellRecords`. The records and the scores cover only the samples
    that all models have in common."""
    notes: tuple[str, ...]
    """Sentences about differences between the models and about records that were left out."""

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the datasets that all models have."""
        return tuple(self.models[0])


def align(models: Sequence[ModelRecords], attack: str, threat: Threat, order: Sequence[str]) -> AlignedRecords:
    """Return the records of all models under an attack and a threat model, for the samples that were run on all models.

    The datasets in `order` come first, in this order. If a model has records of several protocols, a protocol that was
    run on all models is preferred. Raises UserError if a model does not have records of the attack and the threat
    model. The message lists the records that the model has. Also raises UserError if the models do not have a common
    sample.
    """
    found = [
        [each for each in model.evidence if each.score.attack == attack and each.threat == threat] for model in models
    ]
    _check_found(models, found, attack, threat)
    chosen = _of_shared_protocol(found)
    shared = set.intersection(*(set(each) for each in chosen))
    common = {name: keys for name in _ordered(shared, order) if (keys := _common([each[name] for each in chosen]))}
    if not common:
        raise UserError(
            "the models have no sample in common, but a comparison needs records of the same samples: run all"
            " models under the same protocol"
        )
    aligned = tuple({name: select_samples(each[name], common[name]) for name in common} for each in chosen)
    names = [model.name for model in models]
    return AlignedRecords(aligned, (*_notes(names, chosen, aligned), *_repeated(names, found, aligned)))


def select_samples(evidence: CellRecords, keys: Iterable[Key]) -> CellRecords:
    """Return the records of the samples with the given keys, in the order of the keys.

    The score is computed from these records. The settings (`identity`) and their digest (`fingerprint`) are those of
    the whole run, so they describe all its samples.
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
    """Raise UserError if a model does not have records of the attack and the threat model."""
    without = [model for model, evidence in zip(models, found, strict=True) if not evidence]
    if not without:
        return
    shared = set.intersection(*({(each.score.attack, each.threat) for each in model.evidence} for model in without))
    radii: dict[str, list[str]] = {}
    for name, other in sorted(shared, key=lambda each: (each[0], each[1].norm, each[1].eps)):
        radii.setdefault(name, []).append(str(other))
    existing = "; ".join(f"{name} at {', '.join(threats)}" for name, threats in radii.items()) or "none"
    raise UserError(
        f"{' and '.join(model.name for model in without)} {'does' if len(without) == 1 else 'do'} not have records"
        f" of {attack} at {threat}. Records that all models have: {existing}. Give one of these with --attack and"
        f" --eps, or run {attack} at {threat}"
    )


def _of_shared_protocol(found: Sequence[Sequence[CellRecords]]) -> list[dict[str, CellRecords]]:
    """Return each model's records of one protocol, by dataset name.

    Of the protocols that were run on all models, the one with the most samples is used. If there is no such protocol,
    each model's protocol with the most samples is used.
    """
    sizes = Counter[str]()
    for each in (each for one in found for each in one):
        sizes[each.protocol] += each.score.n
    shared = set.intersection(*({each.protocol for each in one} for one in found))
    chosen = []
    for one in found:
        label = max(shared or {each.protocol for each in one}, key=lambda name: (sizes[name], name))
        # A dataset may have records from several commands. The last records in the list replace earlier ones, because
        # they are from the latest command.
        chosen.append({each.score.dataset: each for each in one if each.protocol == label})
    return chosen


def _ordered(names: Iterable[str], order: Sequence[str]) -> list[str]:
    names = set(names)
    return [name for name in order if name in names] + sorted(names - set(order))


def _common(evidence: Sequence[CellRecords]) -> list[Key]:
    """Return the keys of the samples that are in all given records.

    The order is the order of the first of these records.
    """
    shared = set.intersection(*(set(record_keys(each)) for each in evidence))
    return [key for key in record_keys(evidence[0]) if key in shared]


def _repeated(
    names: Sequence[str], found: Sequence[Sequence[CellRecords]], aligned: Sequence[Mapping[str, CellRecords]]
) -> Iterator[str]:
    """Yield a sentence for every model that has several sets of records of the same dataset.

    Such sets come from runs with different images, prompts, weights or attack files with the same name.
    """
    for name, evidence, used in zip(names, found, aligned, strict=True):
        sets = Counter(each.score.dataset for each in evidence if each.protocol == next(iter(used.values())).protocol)
        if several := [dataset for dataset in used if sets[dataset] > 1]:
            yield (
                f"{name} has records of several versions of {', '.join(several)}, which have different images,"
                " prompts, weights or attack parameters: only the latest version is compared"
            )


def _notes(
    names: Sequence[str], chosen: Sequence[Mapping[str, CellRecords]], models: Sequence[Mapping[str, CellRecords]]
) -> Iterator[str]:
    """Yield a sentence for each difference between the models, and sentences about records that are left out."""
    labels = [next(iter(each.values())).protocol for each in chosen]
    if len(set(labels)) > 1:
        yield "different protocols: " + ", ".join(f"{name} {label}" for name, label in zip(names, labels, strict=True))
    for key, what in _SHARED.items():
        # If the protocols have different names, the first note has already reported this difference.
        if key == "protocol" and len(set(labels)) > 1:
            continue
        differing = [name for name in models[0] if len({canonical(each[name].identity[key]) for each in models}) > 1]
        if differing:
            yield (
                f"the models have different {what} on {', '.join(differing)}, so these accuracies are not comparable"
            )
    if dropped := sorted({name for each in chosen for name in each} - set(models[0])):
        yield f"datasets left out, because not all models have records of the same samples: {', '.join(dropped)}"
    used = sum(each.score.n for each in models[0].values())
    counts = [sum(each[name].score.n for name in models[0]) for each in chosen]
    if max(counts) > used:
        each_has = ", ".join(f"{name} has {count}" for name, count in zip(names, counts, strict=True))
        yield f"all models have records of {used} samples, and only these are compared: {each_has}"
    for name, evidence in zip(names, models, strict=True):
        if len({each.identity["weights"] for each in evidence.values()}) > 1:
            yield f"{name} has records of different weights for different datasets: run it again with a new --out"
