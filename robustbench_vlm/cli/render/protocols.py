"""Protocols in words: the document of one protocol, and the differences between two protocols."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.base import Attack
from robustbench_vlm.cli.render.output import Line
from robustbench_vlm.cli.render.text_table import wrapped
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.fingerprint import fingerprint, plain
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.datasets.base import Dataset
from robustbench_vlm.datasets.published import PUBLISHED
from robustbench_vlm.models.text_encoder import texts_with_equal_tokens
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.protocols.base import Protocol
from robustbench_vlm.protocols.describe import FIELDS

_COMPARED = ("autoattack", "cw", "fgsm", "pgd-20", "pgd-100")
"""Attacks that most papers report. `differences` compares the stages of these attacks in the two protocols."""
_IN_WORDS = ("transform", "small_transform", "resolution", "image_size")
"""Fields of a protocol that `protocol_document` describes in words, because their values are codes."""


@dataclass(frozen=True)
class Difference:
    """One difference between two protocols: its subject, and the value in each protocol."""

    what: str
    first: str
    second: str


def protocol_document(name: str) -> dict[str, Any]:
    """Return a protocol's fields, its fingerprint, and the prompts of each dataset, as a JSON document."""
    protocol: Protocol = PROTOCOLS.load(name)
    adapted = _datasets(protocol)
    texts = {dataset.name: [*dataset.templates, *dataset.classes] for dataset in adapted.values()}
    attacks = {attack: load_attack(replaced).description for attack, replaced in protocol.attacks.items()}
    return {
        "kind": "protocol",
        **plain(protocol),
        **{name: FIELDS[name][1](protocol) for name in _IN_WORDS},
        "attacks": attacks,
        "fingerprint": fingerprint([protocol.identity, texts]),
        "datasets": {
            key: {
                "classes": len(dataset.classes),
                "prompt": dataset.templates[0],
                "prompts": len(dataset.templates),
                "two_classes_with_one_prompt": twins(dataset),
            }
            for key, dataset in adapted.items()
        },
    }


def twins(dataset: Dataset) -> list[str]:
    """Return groups of class names that CLIP cannot distinguish, because they give equal tokens ("X-ray / x - ray")."""
    groups = ({dataset.classes[number] for number in group} for group in texts_with_equal_tokens(dataset.classes))
    return sorted(" / ".join(sorted(names)) for names in groups)


def differences(first: str, second: str) -> list[Difference]:
    """Return the differences between two protocols. Raise UserError for an unknown name."""
    one, two = PROTOCOLS.load(first), PROTOCOLS.load(second)
    found = [Difference(what, say(one), say(two)) for what, say in FIELDS.values() if say(one) != say(two)]
    found += [
        Difference(name, _stages(one, name), _stages(two, name))
        for name in _COMPARED
        if _stages(one, name) != _stages(two, name)
    ]
    mine, theirs = _datasets(one), _datasets(two)
    for name in sorted({*mine, *theirs}):
        found += _text_differences(name, mine.get(name), theirs.get(name))
    return found


def difference_lines(first: str, second: str, found: Sequence[Difference], width: int) -> list[Line]:
    """Return the lines of each difference: its subject, and the value in each protocol."""
    if not found:
        return [Line(f"{first} and {second} have no differences")]
    lines: list[Line] = []
    for each in found:
        lines.append(Line(each.what, "bold"))
        for name, value in ((first, each.first), (second, each.second)):
            lines += [Line(f"  {line.text}") for line in wrapped(f"{name}: {value}", width - 2, indent="  ")]
    return lines


def _datasets(protocol: Protocol) -> dict[str, Dataset]:
    """Return the published datasets for which the protocol has prompts, with these prompts."""
    found = {}
    for name in PUBLISHED if protocol.prompt_source else ():
        with contextlib.suppress(UserError):
            found[name] = protocol.adapt_dataset(DATASETS.load(name))
    return found


def _stages(protocol: Protocol, name: str) -> str:
    attack: Attack = protocol.adapt_attack(load_attack(protocol.attack_name(name)))
    return "; ".join(
        f"{stage.name} ({', '.join(f'{key} {value}' for key, value in sorted(stage.parameters.items()))})"
        for stage in attack.stages
    )


def _text_differences(name: str, first: Dataset | None, second: Dataset | None) -> Iterator[Difference]:
    if first is None or second is None:
        there = ["has no prompts for it" if dataset is None else "has prompts for it" for dataset in (first, second)]
        yield Difference(name, there[0], there[1])
        return
    if first.prompt != second.prompt:
        yield Difference(f"{name}: prompt", _prompt(first), _prompt(second))
    if len(first.classes) != len(second.classes):
        yield Difference(f"{name}: classes", str(len(first.classes)), str(len(second.classes)))
    elif first.classes != second.classes:
        pairs = [pair for pair in zip(first.classes, second.classes, strict=True) if pair[0] != pair[1]]
        what = f"{name}: {len(pairs)} of {len(first.classes)} class names"
        yield Difference(what, f"for example {pairs[0][0]!r}", f"for example {pairs[0][1]!r}")
    shared = [", ".join(twins(dataset)) or "none" for dataset in (first, second)]
    if shared[0] != shared[1]:
        yield Difference(f"{name}: classes with equal names", *shared)


def _prompt(dataset: Dataset) -> str:
    more = len(dataset.templates) - 1
    return repr(dataset.templates[0]) + (f" and {more} more, averaged" if more else "")
