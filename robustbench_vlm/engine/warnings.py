"""Gates: what makes a number unbelievable, by code, with its meaning and advice (arXiv:1802.00420, 1902.06705)."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from robustbench_vlm.attacks.base import Attack
from robustbench_vlm.core.records import CLEAN, SampleResult, Score
from robustbench_vlm.datasets.base import Prompt
from robustbench_vlm.datasets.published.local_copy import is_incomplete, is_other_split
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.models.text_encoder import texts_with_equal_tokens

ZERO_GRADIENTS = 0.01
"""Share of samples without an input gradient that is let pass."""
BLACK_BOX_SHARE = 0.02
"""Share of samples that a black-box stage may break after the white-box ones, if it breaks two at least."""
RISE = 0.01
"""Robust accuracy may rise by this much, or by one sample, where it ought to fall: attacks start at random points."""
COLLAPSED = 0.9
"""Share of predictions that may fall on one class, unless that share of the labels does."""


@dataclass(frozen=True)
class Gate:
    """A reason not to believe a number. A score's warning is its `code`, or "code:N" with the count of samples."""

    code: str
    meaning: str
    advice: str


_GRADIENTS = "attack it with gradients that see the defense (BPDA, EOT), and trust the black-box stages more"
GATES: Mapping[str, Gate] = {
    gate.code: gate
    for gate in (
        Gate("zero-gradient", "the margin's gradient at the clean image is exactly zero", _GRADIENTS),
        Gate("non-finite-gradient", "a gradient of the loss at the image is NaN or infinite", _GRADIENTS),
        Gate("unstable-output", "two equal calls give different logits", "average over the model's randomness (EOT)"),
        Gate("batch-dependent", "logits depend on the batch mates", "put the model into eval mode; normalise a sample"),
        Gate("probability-logits", "logits look like probabilities", "return logits: a softmax hides the gradient"),
        Gate(
            "same-prompt",
            "two classes have the same prompt, or one that CLIP reads as the same",
            "change the class names: one of the two never wins",
        ),
        Gate("collapsed", "nearly every prediction is one class", "look at its training: it tells nothing apart"),
        Gate("near-chance", "clean accuracy is no better than a constant answer", "compare models elsewhere"),
        Gate("robust-near-chance", "robust accuracy is no better than a constant answer", "do not rank by this set"),
        Gate("black-box-wins", "a black-box stage breaks what white-box stages left", _GRADIENTS),
        Gate("rises-with-eps", "robust accuracy is higher at a larger eps", _GRADIENTS),
        Gate("rises-with-attack", "robust accuracy is higher under a stronger attack", "take the worst of the attacks"),
        Gate("incomplete", "samples of this dataset are missing on this machine", "fetch all of it to compare"),
        Gate(
            "other-split",
            "the hub's shards are another split of this set",
            "compare on one split alone",
        ),
        Gate("unreadable", "images that nobody can decode were left out", "mend the images for a comparable number"),
        Gate("dlr-needs-3-classes", "DLR is not defined below 3 classes", "none: the margin loss stood in"),
        Gate("targeted-dlr-needs-4-classes", "targeted DLR needs 4 classes", "none: the margin loss stood in"),
    )
}


def explain(warning: str) -> Gate:
    """Return the gate of a score's warning, "code" or "code:N"; one that a plugin's stage noted explains itself."""
    code = warning.partition(":")[0]
    return GATES.get(code, Gate(code, "noted by a stage of the attack", "see the documentation of that attack"))


def cell_warnings(cell: Cell, results: Sequence[SampleResult]) -> tuple[str, ...]:
    """Return the warnings that one cell's samples, class names and attack give reason for."""
    n = len(results)
    counts = Counter(code for result in results for code in result.warnings.split(",") if code)
    counts["unreadable"] = len(cell.samples.unreadable)
    counts["same-prompt"] = _repeated(cell.dataset.prompts)
    counts["black-box-wins"] = _black_box_wins(cell.attack, results)
    if counts["zero-gradient"] <= ZERO_GRADIENTS * n:
        del counts["zero-gradient"]
    shares = {
        "collapsed": _collapsed(results),
        "near-chance": _share(results, clean=True) <= _constant(results),
        # Nothing left is a finding; something left that a constant answer has too is none.
        "incomplete": is_incomplete(cell.dataset),
        "other-split": is_other_split(cell.dataset),
        "robust-near-chance": 0 < _share(results, clean=False) <= _constant(results),
    }
    counted = [f"{code}:{count}" for code, count in counts.items() if count]
    return tuple(sorted(counted + [code for code, raised in shares.items() if raised]))


def with_comparisons(cells: Sequence[Cell], scores: Sequence[Score]) -> list[Score]:
    """Return the scores of one run with the warnings that only their comparison shows, in the same order."""
    found: list[Score] = []
    for cell, score in zip(cells, scores, strict=True):
        others = [
            (other, other_score)
            for other, other_score in zip(cells, scores, strict=True)
            if _comparable(cell, other) and score.robust > other_score.robust + max(RISE, 1 / score.n) + 1e-9
        ]
        raised = {
            "rises-with-eps": any(_weaker_eps(other, cell) for other, _ in others),
            "rises-with-attack": any(_weaker_attack(other, cell) for other, _ in others),
        }
        extra = tuple(code for code, is_raised in raised.items() if is_raised)
        found.append(dataclasses.replace(score, warnings=tuple(sorted({*score.warnings, *extra}))))
    return found


def _comparable(cell: Cell, other: Cell) -> bool:
    return (cell.weights, cell.samples.digest, cell.dataset.prompts, cell.threat.norm, cell.protocol) == (
        other.weights,
        other.samples.digest,
        other.dataset.prompts,
        other.threat.norm,
        other.protocol,
    )


def _weaker_eps(weaker: Cell, cell: Cell) -> bool:
    return weaker.attack == cell.attack and weaker.threat.eps < cell.threat.eps


def _weaker_attack(weaker: Cell, cell: Cell) -> bool:
    first, second = weaker.attack.strength, cell.attack.strength
    return weaker.threat == cell.threat and first is not None and second is not None and first < second


def _black_box_wins(attack: Attack, results: Sequence[SampleResult]) -> int:
    white_box = False
    after: set[str] = set()
    for stage in attack.stages:
        if not stage.is_black_box:
            white_box = True
        elif white_box:
            after.add(stage.name)
    broken = sum(result.broken_by in after for result in results)
    return broken if broken >= 2 and broken > BLACK_BOX_SHARE * len(results) else 0


def _repeated(prompts: Sequence[Prompt]) -> int:
    # Of an ensemble the first: a template puts two names into the same tokens, or none does.
    first = [prompt if isinstance(prompt, str) else prompt[0] for prompt in prompts]
    return sum(len(group) - 1 for group in texts_with_equal_tokens(first))


def _share(results: Sequence[SampleResult], *, clean: bool) -> float:
    kept = sum(result.broken_by != CLEAN if clean else result.broken_by == "" for result in results)
    return kept / len(results)


def _constant(results: Sequence[SampleResult]) -> float:
    """Return the accuracy of the best constant answer."""
    return max(Counter(result.label for result in results).values()) / len(results)


def _collapsed(results: Sequence[SampleResult]) -> bool:
    share = max(Counter(result.clean_prediction for result in results).values()) / len(results)
    return len(results) > 1 and share >= COLLAPSED > _constant(results)
