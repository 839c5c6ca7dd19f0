"""What there is: the names of every kind, a sentence on each, and everything that is known of one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len

from robustbench_vlm.attacks import ATTACKS, FAMILIES, load_attack
from robustbench_vlm.attacks.base import Attack
from robustbench_vlm.cli.render.layout import wrapped
from robustbench_vlm.cli.render.protocols import protocol_document
from robustbench_vlm.cli.render.screen import Line
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.records import plain
from robustbench_vlm.core.registry import Registry, unknown
from robustbench_vlm.core.text import terminal_text
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.datasets.base import Dataset
from robustbench_vlm.datasets.published import ORIGINALS
from robustbench_vlm.defenses import DEFENSES
from robustbench_vlm.defenses.base import Defense
from robustbench_vlm.models import ARCHITECTURES, MODELS, card_names
from robustbench_vlm.models.architecture import Architecture, load_architecture
from robustbench_vlm.models.card import ModelCard, find_card
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.test_time import TEST_TIME_DEFENSES
from robustbench_vlm.test_time.base import TestTimeDefense
from robustbench_vlm.test_time.defended_model import split_reference
from robustbench_vlm.tracks import TRACKS

_MODEL_FORMS = ("path/to/card.json", "open_clip:ARCH/PRETRAINED", "PROCEDURE+MODEL")
_WORDS = 40
"""Letters up to which the items of a list stand side by side."""


@dataclass(frozen=True)
class Kind:
    """How the values of one kind are named, found, and said in a sentence; the track matters to models only."""

    names: Callable[[str], Sequence[str]]
    load: Callable[[str, str], Any]
    summary: Callable[[Any], str]
    families: tuple[str, ...] = ()
    """Forms of names that make a value each, such as pgd-N."""


@dataclass(frozen=True)
class Entry:
    """A name in a list. `error` says why the value cannot be had, such as a plugin that fails."""

    name: str
    summary: str
    error: str = ""


@dataclass(frozen=True)
class _OnTop:
    """A procedure on top of a model."""

    name: str
    procedure: TestTimeDefense
    model: ModelCard


def kind_of(word: str) -> str:
    """Return the kind that a word names, singular or plural; raise UserError for another word."""
    kind = word.removesuffix("s")
    if kind not in KINDS:
        raise UserError(unknown("kind", word, [f"{kind}s" for kind in KINDS]))
    return kind


def check_is_protocol(word: str) -> None:
    """Raise UserError for the word of another kind than protocols."""
    if kind_of(word) != "protocol":
        raise UserError(f"only protocols can be compared, not {word}: vlmbench diff protocol NAME NAME")


def entries(kind: str, track: str) -> list[Entry]:
    """Return every name of a kind; a value that cannot be loaded keeps none of the others from the list."""
    found = KINDS[kind]
    listed = [_entry(found, name, track) for name in found.names(track)]
    return listed + [Entry(form, "any of this form") for form in found.families]


def entry_lines(listed: Sequence[Entry], width: int) -> list[Line]:
    """Return a list's lines: name and sentence side by side, or one below the other where names take half the width."""
    names = max((cell_len(terminal_text(entry.name)) for entry in listed), default=0) + 2
    beside = 2 * names <= width
    indent = " " * names if beside else "  "
    lines: list[Line] = []
    for entry in listed:
        name, style = terminal_text(entry.name), "yellow" if entry.error else ""
        sentence = [line.text for line in wrapped(entry.error or entry.summary, width - len(indent))]
        if beside:
            name += " " * (names - cell_len(name)) + (sentence.pop(0) if sentence else "")
        lines += [Line(name.rstrip(), style), *(Line(indent + rest, style) for rest in sentence)]
    return lines


def document(kind: str, name: str, track: str) -> dict[str, Any]:
    """Return all that is known of one value; raise UserError where there is none of that name."""
    if kind == "protocol":
        return protocol_document(name)
    value = KINDS[kind].load(name, track)
    known = {"kind": kind, **plain(value, _import_path)}
    return known | (_dataset_facts(value) if isinstance(value, Dataset) else {})


def document_lines(value: Any, width: int, depth: int = 0) -> list[Line]:
    """Return a document as indented lines, a field each; empty fields are left out."""
    indent = "  " * depth
    fields = value.items() if isinstance(value, Mapping) else [("-", item) for item in value]
    lines: list[Line] = []
    for key, item in fields:
        if item in ("", None, [], {}):
            continue
        label = key if key == "-" else f"{key}:"
        if isinstance(item, Mapping) or (isinstance(item, list) and any(map(_needs_lines, item))):
            lines += [Line(indent + label, "bold"), *document_lines(item, width, depth + 1)]
            continue
        text = ", ".join(map(str, item)) if isinstance(item, list) else str(item)
        lines += [Line(indent + line.text) for line in wrapped(f"{label} {text}", width - len(indent), indent="  ")]
    return lines


def _dataset_facts(dataset: Dataset) -> dict[str, Any]:
    """Return what a dataset's fields do not say, or not in words."""
    if not dataset.original:
        return {"transform": "", "samples": len(dataset.open().ids), "chance": dataset.chance}
    original = ORIGINALS[dataset.original]
    return {
        "origin": original.origin,
        "licence": original.licence,
        "transform": str(dataset.transform),
        "samples": original.samples,
        "chance": dataset.chance,
    }


def _needs_lines(item: Any) -> bool:
    """Say whether an item of a list is a mapping or a sentence, which commas would not keep apart."""
    return isinstance(item, Mapping) or len(str(item)) > _WORDS


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
    TRACKS.load(track)
    return sorted({*card_names(track), *MODELS.names()})


def _any_model(reference: str, track: str) -> "ModelCard | _OnTop":
    procedure, model = split_reference(reference)
    card = find_card(model, track)
    return _OnTop(f"{procedure}+{card.name}", TEST_TIME_DEFENSES.load(procedure), card) if procedure else card


def _model(card: ModelCard) -> str:
    told = f"defended by {card.defense}" if card.defense else card.notes or "undefended"
    by_hand = card.image is not None and bool(card.image.page)
    missing = "to be fetched by hand" if by_hand else "" if card.has_weights else "not released: train it"
    return _sentence([told, missing, card.paper])


def _dataset(dataset: Dataset) -> str:
    return _sentence([f"{len(dataset.classes)} classes", dataset.description])


def _attack(attack: Attack) -> str:
    return _sentence([attack.description, "" if len(attack.norms) > 1 else f"{attack.norms[0]} only", attack.paper])


def _made_by_people(made: Defense | TestTimeDefense) -> str:
    return _sentence([made.paper, f"after the {made.fidelity}" if made.fidelity == "paper" else made.fidelity])


def _architecture(architecture: Architecture) -> str:
    return f"a CLIP for images of {architecture.side} x {architecture.side} pixels"


def _sentence(parts: Iterable[str]) -> str:
    return ", ".join(part for part in parts if part)


KINDS: Mapping[str, Kind] = {
    "model": Kind(
        _model_names, _any_model, _model, ("path/to/card.json", "open_clip:ARCH/PRETRAINED", "PROCEDURE+MODEL")
    ),
    "dataset": Kind(*_from(DATASETS), _dataset),
    "attack": Kind(
        _from(ATTACKS)[0], lambda name, track: load_attack(name), _attack, tuple(form for form, _ in FAMILIES.values())
    ),
    "defense": Kind(*_from(DEFENSES), _made_by_people),
    "procedure": Kind(*_from(TEST_TIME_DEFENSES), _made_by_people),
    "track": Kind(*_from(TRACKS), lambda track: track.description),
    "protocol": Kind(*_from(PROTOCOLS), lambda protocol: protocol.description),
    "architecture": Kind(
        _from(ARCHITECTURES)[0], lambda name, track: load_architecture(name), _architecture, ("open_clip:NAME",)
    ),
}
"""Kind -> how its values are named and found."""
