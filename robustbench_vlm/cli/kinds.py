"""Kinds of registered objects, such as models and attacks, for the commands `list`, `show` and `diff`.

Each kind has functions that list the names of its objects, load an object by its name, and summarise an object.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustbench_vlm.attacks import ATTACKS, FAMILIES, load_attack
from robustbench_vlm.attacks.base import Attack
from robustbench_vlm.cli.render.documents import Entry
from robustbench_vlm.cli.render.protocols import protocol_document
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.core.registry import Registry, unknown
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.datasets.base import Dataset
from robustbench_vlm.datasets.published import PUBLISHED
from robustbench_vlm.defenses import DEFENSES
from robustbench_vlm.defenses.base import Defense
from robustbench_vlm.models import ARCHITECTURES, MODELS, card_names
from robustbench_vlm.models.card import ModelCard, find_card
from robustbench_vlm.models.open_clip import Architecture, load_architecture
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.test_time import TEST_TIME_DEFENSES
from robustbench_vlm.test_time.base import TestTimeDefense
from robustbench_vlm.test_time.defended_model import checked_reference
from robustbench_vlm.tracks import DEFAULT_TRACK, TRACKS, Track


@dataclass(frozen=True)
class Kind:
    """A kind of registered objects, such as models. Its functions list, load and summarise these objects.

    The functions `names` and `load` have the name of a track as an argument. "" means that the user did not give one.
    """

    names: Callable[[str], Sequence[str]]
    load: Callable[[str, str], Any]
    summary: Callable[[Any], str]
    families: tuple[str, ...] = ()
    """Patterns of further names that `load` accepts, such as pgd-N."""


@dataclass(frozen=True)
class _DefendedModel:
    """A model with a test-time defense."""

    name: str
    test_time_defense: TestTimeDefense
    model: ModelCard


def kind_of(word: str) -> str:
    """Return the kind in the singular, for a word in the singular or plural. Raise UserError for an unknown kind."""
    kind = word.removesuffix("s")
    if kind not in KINDS:
        raise UserError(unknown("kind", word, [f"{kind}s" for kind in KINDS]))
    return kind


def check_is_protocol(word: str) -> None:
    """Raise UserError if `word` is not "protocol" or "protocols"."""
    if kind_of(word) != "protocol":
        raise UserError(f"only protocols can be compared, got {word!r}: run `vlmbench diff protocol NAME NAME`")


def entries(kind: str, track: str) -> list[Entry]:
    """Return a list item for every name of a kind, with a summary of the named object.

    If an object cannot be loaded, its list item has the error message. The other names are still listed.
    """
    found = KINDS[kind]
    listed = [_entry(found, name, track) for name in found.names(track)]
    return listed + [Entry(form, "any name of this form") for form in found.families]


def document(kind: str, name: str, track: str) -> dict[str, Any]:
    """Return all fields of one object. Raise UserError if the name is unknown."""
    if kind == "protocol":
        return protocol_document(name)
    value = KINDS[kind].load(name, track)
    known = {"kind": kind, **plain(value, _import_path)}
    if isinstance(value, Track):
        known |= {"eps": [Threat(value.norm, eps).eps_text for eps in value.eps]}
        known |= {name: Threat(value.norm, getattr(value, name)).eps_text for name in ("training_eps", "standard_eps")}
    if kind == "test-time-defense":
        known |= _published_evaluation(name)
    return known | (_dataset_facts(value) if isinstance(value, Dataset) else {})


def _published_evaluation(defense: str) -> dict[str, Any]:
    """Return the evaluation in the released code of a test-time defense, or {} if none is known."""
    from robustbench_vlm.analysis.procedures import PROCEDURES

    found = PROCEDURES.get(defense)
    if found is None:
        return {}
    facts = {"attack": found.summary, "source": found.source, "not_repeated_or_confirmed": list(found.unconfirmed)}
    return {"published_evaluation": facts}


def _dataset_facts(dataset: Dataset) -> dict[str, Any]:
    """Return further properties of a dataset for `vlmbench show`, such as its origin and its number of samples."""
    if not dataset.published:
        return {"transform": "", "samples": len(dataset.open().ids), "chance": dataset.chance}
    published = PUBLISHED[dataset.published]
    return {
        "origin": published.origin,
        "licence": published.licence,
        "transform": str(dataset.transform),
        "samples": published.samples,
        "chance": dataset.chance,
    }


def _entry(kind: Kind, name: str, track: str) -> Entry:
    try:
        return Entry(name, kind.summary(kind.load(name, track)))
    except UserError as error:
        return Entry(name, "", str(error))


def _import_path(function: Any) -> str:
    return f"{function.__module__}:{function.__qualname__}"


def _from(registry: Registry) -> tuple[Callable[[str], Sequence[str]], Callable[[str, str], Any]]:
    return lambda track: registry.names(), lambda name, track: registry.load(name)


def _model_names(track: str) -> list[str]:
    TRACKS.load(track or DEFAULT_TRACK)
    return sorted({*card_names(track or DEFAULT_TRACK), *MODELS.names()})


def _dataset_names(track: str) -> list[str]:
    if not track:
        return DATASETS.names()
    found: Track = TRACKS.load(track)
    return list(dict.fromkeys(filter(None, (*found.datasets, found.training, *found.training_datasets))))


def _protocol_names(track: str) -> list[str]:
    return list(TRACKS.load(track).protocols) if track else PROTOCOLS.names()


def _any_model(reference: str, track: str) -> "ModelCard | _DefendedModel":
    parsed = checked_reference(reference)
    card = find_card(str(parsed.model), track or DEFAULT_TRACK)
    if not parsed.defense:
        return card
    return _DefendedModel(f"{parsed.defense}+{card.name}", TEST_TIME_DEFENSES.load(parsed.defense), card)


def _model(card: ModelCard) -> str:
    about = f"defended by {card.defense}" if card.defense else card.notes or "undefended"
    by_hand = card.image is not None and bool(card.image.page)
    missing = "download it by hand" if by_hand else "" if card.has_weights else "no public weights: train it"
    return _sentence([about, missing, card.paper])


def _dataset(dataset: Dataset) -> str:
    return _sentence([f"{len(dataset.classes)} classes", dataset.description])


def _attack(attack: Attack) -> str:
    return _sentence([attack.description, "" if len(attack.norms) > 1 else f"{attack.norms[0]} only", attack.paper])


def _defense(made: Defense | TestTimeDefense) -> str:
    return _sentence([made.paper, f"follows the {made.fidelity}" if made.fidelity == "paper" else made.fidelity])


def _architecture(architecture: Architecture) -> str:
    return f"a CLIP for images of {architecture.image_size} x {architecture.image_size} pixels"


def _sentence(parts: Iterable[str]) -> str:
    return ", ".join(part for part in parts if part)


KINDS: Mapping[str, Kind] = {
    "model": Kind(_model_names, _any_model, _model, ("path/to/card.json", "open_clip:ARCH/TAG", "DEFENSE+MODEL")),
    "dataset": Kind(_dataset_names, lambda name, track: DATASETS.load(name), _dataset),
    "attack": Kind(
        _from(ATTACKS)[0], lambda name, track: load_attack(name), _attack, tuple(form for form, _ in FAMILIES.values())
    ),
    "defense": Kind(*_from(DEFENSES), _defense),
    "test-time-defense": Kind(*_from(TEST_TIME_DEFENSES), _defense),
    "track": Kind(*_from(TRACKS), lambda track: track.description),
    "protocol": Kind(_protocol_names, lambda name, track: PROTOCOLS.load(name), lambda protocol: protocol.description),
    "architecture": Kind(
        _from(ARCHITECTURES)[0], lambda name, track: load_architecture(name), _architecture, ("open_clip:NAME",)
    ),
}
"""The kinds by their singular names, in the order of the help texts."""
