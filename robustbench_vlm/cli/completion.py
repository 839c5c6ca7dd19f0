"""Shell completion of names from the registries and the model cards.

This module does not import torch, because the import of torch is slow.
"""

from collections.abc import Callable, Iterable, Mapping

import typer

from robustbench_vlm.attacks import ATTACKS
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.defenses import DEFENSES
from robustbench_vlm.engine.backends import ENGINES
from robustbench_vlm.models import ARCHITECTURES, MODELS, card_names
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.test_time import TEST_TIME_DEFENSES
from robustbench_vlm.tracks import TRACKS

Complete = Callable[[typer.Context, str], list[str]]
"""Type of a completion function. Its arguments are the words before the cursor and the beginning of the current word.
It returns the possible completions of the current word."""


def models(context: typer.Context, incomplete: str) -> list[str]:
    """Return the models of the track on the command line.

    If the text contains a `+`, return names of the form DEFENSE+MODEL.
    """
    track = context.params.get("track") or TRACKS.names()[0]
    names = sorted({*card_names(track), *MODELS.names()})
    defense, plus, _ = incomplete.partition("+")
    return [defense + plus + name for name in names] if plus and defense in TEST_TIME_DEFENSES.names() else names


def kinds(context: typer.Context, incomplete: str) -> list[str]:
    """Return the plural names of all kinds of objects, such as "models" and "attacks"."""
    return [f"{kind}s" for kind in BY_KIND]


def of_kind(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of all objects of one kind, such as attacks.

    The kind is an argument of the command. If the command has no such argument, its own name is the kind.
    """
    kind = context.params.get("kind") or context.info_name or ""
    complete = BY_KIND.get(str(kind).removesuffix("s"))
    return complete(context, incomplete) if complete else []


def one_of(names: Callable[[], Iterable[str]]) -> Complete:
    """Return a completion function for a list of names. The function `names` returns this list."""

    # typer chooses the arguments of a completion function by their types, so the annotations are needed.
    def complete(context: typer.Context, incomplete: str) -> list[str]:
        return list(names())

    return complete


BY_KIND: Mapping[str, Complete] = {
    "model": models,
    **{
        registry.kind: one_of(registry.names)
        for registry in (DATASETS, ATTACKS, DEFENSES, TEST_TIME_DEFENSES, TRACKS, PROTOCOLS, ARCHITECTURES)
    },
}
BY_OPTION: Mapping[str, Complete] = {
    **{f"--{kind}": complete for kind, complete in BY_KIND.items()},
    "--base": models,
    "--engine": one_of(ENGINES.names),
    "--norm": one_of(lambda: ("Linf", "L2")),
    "--format": one_of(lambda: ("table", "markdown", "latex", "csv", "html")),
    "--device": one_of(lambda: ("cpu", "cuda")),
}
"""The completion functions of options that take a name. The keys are options such as "--model". An option has the same
completion in all commands."""
