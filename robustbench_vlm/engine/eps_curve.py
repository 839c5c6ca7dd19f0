"""Curves of robust accuracy over eps, from the records of one run of the attack `min-eps`.

The record of a sample has the distance of its closest known adversarial example. At a radius, the sample counts as
robust if this distance is larger. A curve therefore never increases. Its intervals are valid for each radius
separately.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.records import CLEAN, Accuracy, SampleResult
from robustbench_vlm.core.threat import Threat, parse_eps
from robustbench_vlm.engine.request import Request
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.tracks import TRACKS

CURVE_ATTACK = "min-eps"
_MOST_POINTS = 32
_PARTS = 10
_ROUNDING = 1e-6
"""Relative tolerance for the size of a perturbation in float32."""


@dataclass(frozen=True)
class CurvePoint:
    """The robust accuracy of a model at one radius."""

    model: str
    dataset: str
    """Name of the dataset, or "mean": the unweighted mean over the zero-shot datasets."""
    norm: str
    eps: str
    """Text such as "8/255"."""
    robust: Accuracy

    def columns(self) -> dict[str, Any]:
        """Return the point as table columns: model, dataset, norm, eps, n, robust, robust_low and robust_high."""
        about = {name: getattr(self, name) for name in ("model", "dataset", "norm", "eps")}
        return {**about, "n": self.robust.n, **self.robust.columns("robust")}


def curve_request(request: Request) -> Request:
    """Return the request of a curve: the attack `min-eps`, up to twice the standard radius if no eps is given.

    Raises UserError if the request names another attack than the default, or several radii.
    """
    others = [name for name in request.attacks if name not in (CURVE_ATTACK, "autoattack")]
    if others or len(request.attacks) > 1:
        raise UserError(
            f"--eps-curve uses the attack {CURVE_ATTACK}, got --attack {' --attack '.join(request.attacks)}: leave"
            " --attack out"
        )
    if len(request.eps) > 1:
        raise UserError(
            f"--eps-curve takes one --eps, the largest radius of the curve, got {len(request.eps)}: give only the"
            " largest one"
        )
    if any((parse_eps(eps) if isinstance(eps, str) else eps) == 0 for eps in request.eps):
        raise UserError("--eps-curve needs an --eps above 0, the largest radius of the curve, got 0: give 8/255")
    if request.half_width:
        raise UserError("--half-width does not work with --eps-curve, because min-eps has one stage: leave one out")
    if request.draws or PROTOCOLS.load(request.protocol_name).draws > 1:
        raise UserError(
            "draws do not work with --eps-curve, because a curve needs one distance per sample: leave --draws out, or"
            " choose a --protocol without draws"
        )
    eps = request.eps
    if not eps and not request.norm:
        protocol = PROTOCOLS.load(request.protocol_name)
        standard = [Fraction(radius) for radius in protocol.eps] or [TRACKS.load(request.track_name).standard_eps]
        eps = (2 * max(standard),)
    return dataclasses.replace(request, attacks=(CURVE_ATTACK,), eps=eps)


def curve_radii(threat: Threat) -> list[Fraction]:
    """Return the radii of a curve up to the radius of `threat`: multiples of 1/255, or ten equal parts."""
    steps = threat.eps * 255
    if threat.norm == "Linf" and steps.denominator == 1 and 0 < steps <= _MOST_POINTS:
        return [Fraction(number, 255) for number in range(int(steps) + 1)]
    return [threat.eps * number / _PARTS for number in range(_PARTS + 1)]


def curve_of(
    model: str,
    attack: str,
    track: str,
    threat: Threat,
    records: Mapping[str, Sequence[SampleResult]],
    radii: Sequence[str | Fraction] | None,
) -> list[CurvePoint]:
    """Return the points of each dataset and of their mean, in the order of the radii.

    `records` has the records of each dataset. If `radii` is None, `curve_radii` chooses them. Raises UserError if the
    records are of another attack, or if a radius is larger than the radius of the attack.
    """
    if attack != CURVE_ATTACK:
        raise UserError(
            f"a curve needs records of the attack {CURVE_ATTACK}, got {attack}: write evaluate(model, {CURVE_ATTACK!r},"
            " eps=...), or run with --eps-curve"
        )
    chosen = curve_radii(threat) if radii is None else [parse_eps(str(radius)) for radius in radii]
    points = []
    for radius in chosen:
        at = Threat(threat.norm, radius)
        if radius > threat.eps:
            raise UserError(
                f"the radius {at.eps_text} is larger than {threat.eps_text}, up to which the records search: give a"
                f" smaller radius, or evaluate with eps={at.eps_text!r}"
            )
        found = {name: robust_at(rows, radius) for name, rows in records.items()}
        points += [CurvePoint(model, name, at.norm, at.eps_text, accuracy) for name, accuracy in found.items()]
        unseen = [each for name, each in found.items() if name not in TRACKS.load(track).training_datasets]
        if unseen:
            points.append(CurvePoint(model, "mean", at.norm, at.eps_text, Accuracy.mean(unseen)))
    return points


def robust_at(results: Sequence[SampleResult], eps: Fraction) -> Accuracy:
    """Return the share of samples without a known adversarial example within `eps`, with its 95 % interval."""
    limit = float(eps) * (1 + _ROUNDING)
    held = sum(row.broken_by == "" or (row.broken_by != CLEAN and row.distance > limit) for row in results)
    return Accuracy.of_counts(held, len(results))
