"""Warnings from sanity checks of a run's scores: codes, meanings and advice (arXiv:1802.00420, 1902.06705)."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from robustbench_vlm.attacks.base import Attack
from robustbench_vlm.core.records import CLEAN, SampleResult, Score, wilson
from robustbench_vlm.datasets.base import Prompt
from robustbench_vlm.datasets.published.local_copy import is_incomplete, is_other_split
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.models.reference import UNPINNED

ZERO_GRADIENTS = 0.01
"""Threshold of `zero-gradient`, `no-gradient` and `zero-gradient-STAGE`. The warning is raised if the gradient is zero
for more than this share of the samples.
"""
ZERO_GRADIENT_CODES = ("zero-gradient", "no-gradient")
"""Codes, and prefixes of codes, of gradients that are exactly zero."""
BLACK_BOX_RATE = 0.0005
"""Largest plausible share of the samples left by white-box stages that black-box stages break on an honest model. In
the records of the eight bundled models, Square breaks 2 of 15,435 such samples, and the 95 % interval ends at 0.05 %.
"""
BLACK_BOX_CHANCE = 0.01
"""Threshold of `black-box-wins`. The warning is raised if an honest model would have so many samples broken by
black-box stages with at most this probability. One sample of 20 raises the warning, and so do two samples of 200. In
the records of the eight bundled models, Square breaks at most one sample of 21 in a dataset.
"""
RISE = 0.01
"""Threshold of `rises-with-eps` and `rises-with-attack`. The warning is raised if the robust accuracy is higher at a
larger eps or under a stronger attack. The increase must exceed this value and one sample. Smaller increases may be
chance, because attacks start at random points.
"""
COLLAPSED = 0.9
"""Threshold of `collapsed`. The warning is raised if at least this share of the images is predicted as one class. It is
not raised if one class has this share of the labels too.
"""


@dataclass(frozen=True)
class SanityWarning:
    """A reason to doubt a score. `Score.warnings` has the `code`, or "code:N" with the number N of affected samples."""

    code: str
    meaning: str
    advice: str


_GRADIENTS = (
    "attack the model with gradients that account for the defense (BPDA, EOT), and trust the black-box stages more than"
    " the white-box stages"
)
_STAGE_CODE = ZERO_GRADIENT_CODES[0]
WARNINGS: Mapping[str, SanityWarning] = {
    code: SanityWarning(code, meaning, advice)
    for code, meaning, advice in (
        (
            "zero-gradient",
            "the gradient of the logit margin with respect to the clean image is exactly zero. This is a weak sign of"
            " masked gradients, because the attack also uses other losses and other points: an honest certified network"
            " had it on 15 of 200 images",
            _GRADIENTS,
        ),
        (
            "no-gradient",
            "at least 90 % of the gradients of each stage that failed were exactly zero, so only black-box stages could"
            " find an image. This is a strong sign of masked gradients if black-box stages break some of the samples."
            " If they break none, the model may also be constant around the samples",
            "run the attack adaptive, if possible with a surrogate that has gradients",
        ),
        (
            f"{_STAGE_CODE}-STAGE",
            "at least 10 % of the gradients of this stage were exactly zero, but another part of the attack had"
            " gradients. This is a sign that this stage is weak, and not that the number is wrong",
            "trust the other stages, and run the attack adaptive",
        ),
        (
            "non-finite-gradient",
            "a gradient of the loss with respect to the image is NaN or infinite",
            _GRADIENTS,
        ),
        (
            "unstable-output",
            "two calls of the model with the same images give different logits",
            "set the model to eval mode, and remove random operations that have no fixed seed; if the model is random"
            " by design, evaluate it over fresh draws with --draws 100",
        ),
        (
            "batch-dependent",
            "the logits of a sample depend on the other samples of its batch",
            "set the model to eval mode, and normalise each sample separately",
        ),
        (
            "probability-logits",
            "the outputs of the model look like probabilities, but they must be logits",
            "remove the softmax from the model, because a softmax hides the gradient",
        ),
        (
            "same-prompt",
            "two classes have prompts with the same text, or with the same tokens within the context of the model",
            "change the class names, because the model never predicts one of the two classes",
        ),
        (
            "truncated-prompt",
            "some classes have prompts that are longer than the context of the model, so the model does not read"
            " the ends of these prompts",
            "use shorter class names or a shorter prompt template",
        ),
        (
            "same-image",
            "the same image is a sample of two classes, so the model is wrong on at least one of the two samples",
            "keep the image in one class",
        ),
        (
            "collapsed",
            "the model predicts the same class for nearly all samples",
            "check the training, because the model cannot distinguish the classes",
        ),
        (
            "near-chance",
            "the clean accuracy may not be better than that of a model that always predicts one class: the lower end of"
            " its 95 % interval is not higher",
            "compare models on other datasets",
        ),
        (
            "robust-near-chance",
            "the robust accuracy may not be better than that of a model that always predicts one class: the lower end"
            " of its 95 % interval is not higher",
            "do not use this dataset to rank models",
        ),
        (
            "black-box-wins",
            "a black-box stage breaks samples that the white-box stages did not break. This is a strong sign of masked"
            " gradients: for an honest model, so many such samples have a probability of at most 1 %",
            _GRADIENTS,
        ),
        ("rises-with-eps", "the robust accuracy is higher at a larger eps than at a smaller eps", _GRADIENTS),
        (
            "rises-with-attack",
            "the robust accuracy is higher under a stronger attack than under a weaker attack",
            "report the lowest robust accuracy of the attacks",
        ),
        (
            "incomplete",
            "some samples of this dataset are missing on this machine",
            "download the whole dataset before you compare models",
        ),
        (
            "other-split",
            "the images from the Hugging Face hub are a different split of this dataset than the official one",
            "compare only models that were evaluated on the same split",
        ),
        (
            "unreadable",
            "some images could not be decoded and were left out",
            "repair these images to get a comparable accuracy",
        ),
        (
            "dlr-needs-3-classes",
            "this dataset has fewer than 3 classes, but the DLR loss needs 3",
            "nothing to do: the margin loss was used instead",
        ),
        (
            "targeted-dlr-needs-4-classes",
            "this dataset has fewer than 4 classes, but the targeted DLR loss needs 4",
            "nothing to do: the margin loss was used instead",
        ),
        (
            "unpinned",
            "this accuracy cannot be checked on other machines, because the digest of the model does not cover all of"
            " its code and state",
            "define the classes and functions of the model in a module that can be imported, without closures and"
            " global variables",
        ),
    )
}


def explain(warning: str) -> SanityWarning:
    """Return the meaning and advice for a warning "code" or "code:N".

    For an unknown code, for example the code of a plugin, return a general text.
    """
    code = warning.partition(":")[0]
    if code not in WARNINGS and code.startswith(f"{_STAGE_CODE}-"):
        return dataclasses.replace(WARNINGS[f"{_STAGE_CODE}-STAGE"], code=code)
    return WARNINGS.get(
        code, SanityWarning(code, "a stage of the attack raised this warning", "see the documentation of that attack")
    )


def cell_warnings(cell: Cell, results: Sequence[SampleResult], robust: float) -> tuple[str, ...]:
    """Return the warnings about the samples, class names and attack of one cell.

    A cell is one model, attack, dataset and radius. `robust` is its robust accuracy, in [0, 1].
    """
    counts = warning_counts(results)
    counts["unreadable"] = len(cell.samples.unreadable)
    counts["same-prompt"] = _repeated(cell.dataset.prompts, cell.context_length)
    counts["truncated-prompt"] = _truncated(cell)
    counts["same-image"] = _in_two_classes(cell)
    shares = {
        "collapsed": _collapsed(results),
        "near-chance": _low(_clean(results), results) <= _constant(results),
        "unpinned": cell.weights.startswith(UNPINNED),
        "incomplete": is_incomplete(cell.dataset),
        "other-split": is_other_split(cell.dataset),
        # A robust accuracy of exactly 0 does not raise "robust-near-chance": the attack broke every sample, so the
        # accuracy is not chance.
        "robust-near-chance": robust > 0 and _low(robust, results) <= _constant(results),
    }
    counted = attack_warnings(cell.attack, [result.broken_by for result in results], counts)
    return tuple(sorted([*counted, *(code for code, raised in shares.items() if raised)]))


def warning_counts(results: Iterable[SampleResult]) -> Counter[str]:
    """Return the number of samples with each warning of their records."""
    return Counter(code for result in results for code in result.warnings.split(",") if code)


def attack_warnings(attack: Attack, broken_by: Sequence[str], counts: Mapping[str, int]) -> tuple[str, ...]:
    """Return the sorted warnings "code:N" of an attack.

    `broken_by` has `SampleResult.broken_by` of every sample. `counts` has the number of samples for each code.
    """
    found = Counter(counts)
    found["black-box-wins"] = _black_box_wins(attack, broken_by)
    for code in [code for code in found if code.startswith(ZERO_GRADIENT_CODES)]:
        if found[code] <= ZERO_GRADIENTS * len(broken_by):
            del found[code]
    return tuple(sorted(f"{code}:{count}" for code, count in found.items() if count))


def with_comparisons(
    cells: Sequence[Cell], scores: Sequence[Score], bounds: Sequence[tuple[float, float]] | None = None
) -> list[Score]:
    """Compare the cells of a run, and return their scores with the warnings from these comparisons.

    The scores have the order of `scores`. `bounds` has an interval of the robust accuracy of each cell. Only an
    increase from the upper end of one interval to the lower end of another raises a warning. Without `bounds`, both
    ends are the robust accuracy.
    """
    bounds = [(score.robust, score.robust) for score in scores] if bounds is None else bounds
    found: list[Score] = []
    for cell, score, (low, _) in zip(cells, scores, bounds, strict=True):
        others = [
            other
            for other, (_, high) in zip(cells, bounds, strict=True)
            if low > high + max(RISE, 1 / score.n) + 1e-9 and _comparable(cell, other)
        ]
        raised = {
            "rises-with-eps": any(_weaker_eps(other, cell) for other in others),
            "rises-with-attack": any(_weaker_attack(other, cell) for other in others),
        }
        extra = tuple(code for code, is_raised in raised.items() if is_raised)
        found.append(dataclasses.replace(score, warnings=tuple(sorted({*score.warnings, *extra}))))
    return found


def _comparable(cell: Cell, other: Cell) -> bool:
    """Return whether two cells have the same model, samples, prompts, norm and protocol."""
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


def _black_box_wins(attack: Attack, broken_by: Sequence[str]) -> int:
    """Return the first number of `black_box_breaks`, or 0 if it is plausible for an honest model."""
    broken, left = black_box_breaks(attack, broken_by)
    return broken if broken and _chance(broken, left, BLACK_BOX_RATE) <= BLACK_BOX_CHANCE else 0


def black_box_breaks(attack: Attack, broken_by: Sequence[str]) -> tuple[int, int]:
    """Return the number of samples that only a black-box stage after white-box stages broke, and that could be broken.

    The second number is that of the samples that were left for the first of these black-box stages. `broken_by` has
    `SampleResult.broken_by` of every sample.
    """
    names = [stage.name for stage in attack.stages]
    first_white = next((n for n, stage in enumerate(attack.stages) if not stage.is_black_box), len(names))
    after = [n for n, stage in enumerate(attack.stages) if stage.is_black_box and n > first_white]
    if not after:
        return 0, 0
    counts = Counter(broken_by)
    return sum(counts[names[n]] for n in after), counts[""] + sum(counts[name] for name in names[after[0] :])


def _chance(count: int, samples: int, rate: float) -> float:
    """Return the probability of `count` or more successes in `samples` independent trials with probability `rate`."""
    fewer = (math.comb(samples, n) * rate**n * (1 - rate) ** (samples - n) for n in range(count))
    return 1 - sum(fewer)


def _repeated(prompts: Sequence[Prompt], context_length: int) -> int:
    """Return the number of classes whose prompts have the same tokens as the prompts of an earlier class."""
    from robustbench_vlm.models.text_encoder import texts_with_equal_tokens

    texts = [(prompt,) if isinstance(prompt, str) else prompt for prompt in prompts]
    groups: list[tuple[int, ...]] = [tuple(range(len(texts)))]
    for template in range(len(texts[0])):
        # Each template splits the groups further. After the first template, most groups have only one class, so the
        # other templates take little time.
        groups = [
            tuple(group[place] for place in equal)
            for group in groups
            for equal in texts_with_equal_tokens([texts[member][template] for member in group], context_length)
        ]
    return sum(len(group) - 1 for group in groups)


def _truncated(cell: Cell) -> int:
    """Return the number of classes with a prompt that has more tokens than the text encoder reads."""
    from robustbench_vlm.models.text_encoder import count_tokens

    longest = max(cell.dataset.templates, key=count_tokens)
    return sum(count_tokens(longest.replace("{}", name)) > cell.context_length for name in cell.dataset.classes)


def _in_two_classes(cell: Cell) -> int:
    """Return the number of samples whose image is also a sample of another class."""
    classes: dict[str, set[int]] = {}
    for digest, label in zip(cell.samples.image_digests, cell.samples.labels, strict=True):
        classes.setdefault(digest, set()).add(label)
    return sum(len(classes[digest]) > 1 for digest in cell.samples.image_digests)


def _clean(results: Sequence[SampleResult]) -> float:
    """Return the clean accuracy."""
    return sum(result.broken_by != CLEAN for result in results) / len(results)


def _low(share: float, results: Sequence[SampleResult]) -> float:
    """Return the lower end of the 95 % interval of an accuracy on these samples, in [0, 1]."""
    return wilson(round(share * len(results)), len(results))[0]


def _constant(results: Sequence[SampleResult]) -> float:
    """Return the share of the most frequent label, which is the accuracy of the best constant prediction."""
    return max(Counter(result.label for result in results).values()) / len(results)


def _collapsed(results: Sequence[SampleResult]) -> bool:
    """Return whether nearly all clean predictions are one class, although the labels have several classes."""
    share = max(Counter(result.clean_prediction for result in results).values()) / len(results)
    return len(results) > 1 and share >= COLLAPSED > _constant(results)
