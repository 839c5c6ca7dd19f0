"""Alignment: the records of several models cut down to the samples that all of them were measured on."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.fingerprint import canonical
from robustbench_vlm.core.records import SampleResult
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.engine.evidence import Evidence
from robustbench_vlm.engine.scores import accuracies

Key = tuple[str, str, int]
"""What makes a sample the same for two models: its id, the digest of its pixels, its label."""

_SHARED = {"classes": "class names", "prompts": "prompts", "attack": "stages of the attack", "protocol": "protocols"}
"""What has to be equal for two numbers to be comparable, by its key in the identity."""


@dataclass(frozen=True)
class Source:
    """One model's evidence, under a name that no other source of the same request has."""

    name: str
    evidence: tuple[Evidence, ...]
    notes: tuple[str, ...] = ()
    """Sentences about where it is from that a reader of its numbers should know."""


@dataclass(frozen=True)
class Aligned:
    """The evidence of several models under one attack and threat, each on the same samples in the same order."""

    models: tuple[Mapping[str, Evidence], ...]
    """For each source, by dataset: its evidence, with the results and accuracies of the common samples only."""
    notes: tuple[str, ...]
    """What differs between the models, and what was left out, in sentences."""

    @property
    def datasets(self) -> tuple[str, ...]:
        """The datasets that all models have."""
        return tuple(self.models[0])


def align(sources: Sequence[Source], attack: str, threat: Threat, order: Sequence[str]) -> Aligned:
    """Return what all sources have under an attack and a threat, datasets of `order` first.

    Of a source with records of several protocols, that one counts which the others have too. Raises UserError where a
    source has no such records, saying what there is, and where there is no common sample.
    """
    found = [[each for each in source.evidence if _is_of(each, attack, threat)] for source in sources]
    _check_found(sources, found, attack, threat)
    chosen = _of_shared_protocol(found)
    shared = set.intersection(*(set(each) for each in chosen))
    common = {name: keys for name in _ordered(shared, order) if (keys := _common([each[name] for each in chosen]))}
    if not common:
        raise UserError("these models have no sample in common: run them under the same protocol to compare them")
    models = tuple({name: kept(each[name], common[name]) for name in common} for each in chosen)
    return Aligned(models, tuple(_notes([source.name for source in sources], chosen, models)))


def kept(evidence: Evidence, keys: Iterable[Key]) -> Evidence:
    """Return evidence with the results of some of its samples only, in that order, and the accuracies they give.

    Fingerprint and identity stay those of the whole cell.
    """
    by_key = {_key(result): result for result in evidence.results}
    results = tuple(by_key[key] for key in keys)
    return replace(evidence, results=results, score=replace(evidence.score, **accuracies(results)))


def keys_of(evidence: Evidence) -> tuple[Key, ...]:
    """Return what the evidence's samples are known by, in their order."""
    return tuple(_key(result) for result in evidence.results)


def _key(result: SampleResult) -> Key:
    return result.sample_id, result.image_sha256, result.label


def _is_of(evidence: Evidence, attack: str, threat: Threat) -> bool:
    return evidence.score.attack == attack and evidence.threat == threat


def _check_found(sources: Sequence[Source], found: Sequence[Sequence[Evidence]], attack: str, threat: Threat) -> None:
    without = [source for source, evidence in zip(sources, found, strict=True) if not evidence]
    if not without:
        return
    shared = set.intersection(*({(each.score.attack, each.threat) for each in source.evidence} for source in without))
    radii: dict[str, list[str]] = {}
    for name, other in sorted(shared, key=lambda each: (each[0], each[1].norm, each[1].eps)):
        radii.setdefault(name, []).append(str(other))
    there = "; ".join(f"{name} at {', '.join(threats)}" for name, threats in radii.items()) or "nothing in common"
    raise UserError(
        f"{' and '.join(source.name for source in without)} {'has' if len(without) == 1 else 'have'} no records of"
        f" {attack} at {threat}, but: {there}; name one of these by --attack and --eps, or run what is missing"
    )


def _of_shared_protocol(found: Sequence[Sequence[Evidence]]) -> list[dict[str, Evidence]]:
    sizes = Counter[str]()
    for each in (each for one in found for each in one):
        sizes[each.protocol] += each.score.n
    shared = set.intersection(*({each.protocol for each in one} for one in found))
    chosen = []
    for one in found:
        label = max(shared or {each.protocol for each in one}, key=lambda name: (sizes[name], name))
        # A run lists the cells of its latest command last.
        chosen.append({each.score.dataset: each for each in one if each.protocol == label})
    return chosen


def _ordered(names: Iterable[str], order: Sequence[str]) -> list[str]:
    names = set(names)
    return [name for name in order if name in names] + sorted(names - set(order))


def _common(evidence: Sequence[Evidence]) -> list[Key]:
    shared = set.intersection(*(set(keys_of(each)) for each in evidence))
    return [key for key in keys_of(evidence[0]) if key in shared]


def _notes(
    names: Sequence[str], chosen: Sequence[Mapping[str, Evidence]], models: Sequence[Mapping[str, Evidence]]
) -> Iterator[str]:
    labels = [next(iter(each.values())).protocol for each in chosen]
    if len(set(labels)) > 1:
        yield "different protocols: " + ", ".join(f"{name} {label}" for name, label in zip(names, labels, strict=True))
    for key, what in _SHARED.items():
        # Where the protocol's own name says that it differs, saying so of its fields adds nothing.
        if key == "protocol" and len(set(labels)) > 1:
            continue
        differing = [name for name in models[0] if len({canonical(each[name].identity[key]) for each in models}) > 1]
        if differing:
            yield f"different {what} on {', '.join(differing)}: these numbers are not of one and the same question"
    if dropped := sorted({name for each in chosen for name in each} - set(models[0])):
        yield f"left out, as the models have no common samples there: {', '.join(dropped)}"
    used = sum(each.score.n for each in models[0].values())
    counts = [sum(each[name].score.n for name in models[0]) for each in chosen]
    if max(counts) > used:
        each_has = ", ".join(f"{name} has {count}" for name, count in zip(names, counts, strict=True))
        yield f"compared on the {used} samples that all have: {each_has}"
    for name, evidence in zip(names, models, strict=True):
        if len({each.identity["weights"] for each in evidence.values()}) > 1:
            yield f"{name} has records of different weights, one a dataset: run it again in a new folder"
