"""Geometry of a board's two charts, a scatter plot and curves. A template draws them as SVG.

Positions depend only on the accuracies. Each label takes the first free position around its point.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

from robustbench_vlm.core.numbers import percent
from robustbench_vlm.core.records import Accuracy
from robustbench_vlm.leaderboard.board import Board, BoardRow
from robustbench_vlm.leaderboard.site.texts import shown

WIDTH, HEIGHT = 480, 370
LEFT, RIGHT, TOP, BOTTOM = 46, 464, 12, 328
"""The frame of the plot, in units of the SVG canvas."""
DETAILED = 100
"""Number of models with intervals in the scatter plot, and with a curve. Further models are only dots."""
_NEAREST = 10
"""Number of grey curves above and below the model of a model page."""
COLOURS = 8
"""Number of models with a distinct colour. Further models are grey."""
_CURVE_RIGHT = 352
"""The x position where the curves end, in units of the SVG canvas. The names of the models are to the right of it."""
_CHARACTER, _LINE = 7.0, 14.5
"""Width of a character and height of a line in a label, in units of the SVG canvas."""
_LONGEST = 15
"""Largest number of characters of a name in a chart."""
_LEADERS = ((24, -22), (24, 30), (42, -10), (42, 18), (60, -34), (60, 42), (80, -10), (80, 18))
"""Distances of a label from its point along both axes, for labels with a leader line, in units of the SVG canvas."""
Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a rectangle, in units of the SVG canvas."""


@dataclass(frozen=True)
class Tick:
    """A position on an axis, and the label at this position."""

    at: float
    text: str


@dataclass(frozen=True)
class Label:
    """The name of a model near its point in a chart.

    The anchor (x, y) is the left end ("start"), right end ("end") or centre ("middle") of the name.
    """

    x: float
    y: float
    text: str
    anchor: str = "start"
    has_leader: bool = False
    """Whether a thin line joins the point and the name, because the name is not next to the point."""

    @property
    def box(self) -> Box:
        """The rectangle that the label covers."""
        width = _CHARACTER * len(self.text)
        left = self.x - {"start": 0.0, "end": width, "middle": width / 2}[self.anchor]
        return left, self.y - 11, left + width, self.y - 11 + _LINE


@dataclass(frozen=True)
class ScatterPoint:
    """A model in the scatter plot: its point, the ends of its two intervals, and its label.

    The label is missing if the chart is too full.
    """

    series: int
    """Index of the colour, from 1 to `COLOURS`. 0 is grey."""
    model: str
    x: float
    y: float
    left: float
    right: float
    top: float
    bottom: float
    title: str
    label: Label | None = None


@dataclass(frozen=True)
class CurveVertex:
    """A point of a curve: the accuracy at one radius, and the ends of its interval, in units of the SVG canvas."""

    x: float
    y: float
    top: float
    bottom: float
    attacks: tuple[str, ...] = ()
    """Attacks at this radius. It is empty at radius 0."""


@dataclass(frozen=True)
class CurveLine:
    """A part of a curve that is drawn as one line."""

    points: str
    """Points for an SVG polyline."""
    is_dashed: bool
    """Whether the line joins radii with different attacks."""


@dataclass(frozen=True)
class Curve:
    """A model's curve of robust accuracy over the radius."""

    series: int
    title: str
    stops: tuple[CurveVertex, ...]
    label: Label | None = None

    @property
    def lines(self) -> tuple[CurveLine, ...]:
        """The lines between the points.

        A dashed line joins two radii that do not have the same attacks on all datasets. The line from the clean
        accuracy to the first radius is solid.
        """
        parts: list[CurveLine] = []
        for number, (start, end) in enumerate(pairwise(self.stops)):
            is_dashed = number > 0 and (start.attacks != end.attacks or not start.attacks)
            if parts and parts[-1].is_dashed == is_dashed:
                parts[-1] = CurveLine(f"{parts[-1].points} {end.x},{end.y}", is_dashed)
            else:
                parts.append(CurveLine(f"{start.x},{start.y} {end.x},{end.y}", is_dashed))
        return tuple(parts)

    @property
    def band(self) -> str:
        """Corners of the area between the ends of the intervals, for an SVG polygon."""
        there = [f"{stop.x},{stop.top}" for stop in self.stops]
        return " ".join([*there, *(f"{stop.x},{stop.bottom}" for stop in reversed(self.stops))])


@dataclass(frozen=True)
class Chart:
    """The axes, points and curves that a template draws."""

    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    right: float
    """Right end of the plot, in units of the SVG canvas."""
    marks: tuple[ScatterPoint, ...] = ()
    curves: tuple[Curve, ...] = ()
    dots: str = ""
    """Points of further models, as the path of an SVG."""
    left: float = LEFT
    top: float = TOP
    bottom: float = BOTTOM
    width: float = WIDTH
    height: float = HEIGHT


def scatter(rows: Sequence[BoardRow]) -> Chart:
    """Return the scatter plot of robust against clean accuracy, with 95 % intervals on both axes."""
    low_x, high_x = _span([row.clean for row in rows])
    low_y, high_y = _span([row.robust for row in rows])

    def across(share: float) -> float:
        return _between(share, low_x, high_x, LEFT, RIGHT)

    def up(share: float) -> float:
        return _between(share, low_y, high_y, BOTTOM, TOP)

    bare = [_mark(row, _series(number), across, up) for number, row in enumerate(rows[:DETAILED])]
    marks = [dataclasses.replace(mark, label=label) for mark, label in zip(bare, _labels(bare), strict=True)]
    x_ticks, y_ticks = _ticks(low_x, high_x, LEFT, RIGHT), _ticks(low_y, high_y, BOTTOM, TOP)
    dots = "".join(f"M{across(row.clean.value)} {up(row.robust.value)}h0" for row in rows[DETAILED:])
    return Chart(x_ticks, y_ticks, RIGHT, marks=tuple(marks), dots=dots)


def _mark(row: BoardRow, series: int, across: Callable[[float], float], up: Callable[[float], float]) -> ScatterPoint:
    clean, robust = row.clean, row.robust
    return ScatterPoint(
        *(series, row.model, across(clean.value), up(robust.value)),
        *(across(clean.low), across(clean.high), up(robust.high), up(robust.low)),
        title=f"{row.model}: clean {percent(clean.value)} %, robust {percent(robust.value)} %",
    )


def curves(board: Board, foremost: str = "") -> Chart:
    """Return the curves of robust accuracy over the radius. The value at radius 0 is the clean accuracy.

    If `foremost` is the name of a model, only this model's curve has a colour, and the models next to it are grey.
    """
    shown_rows = nearest([row.model for row in board.rows].index(foremost)) if foremost else slice(DETAILED)
    rows = board.rows[shown_rows]
    radii = {0.0} | {point.radius for row in rows for point in row.curve}
    largest = max(radii) or 1.0

    def across(radius: float) -> float:
        return _between(radius, 0, largest, LEFT, _CURVE_RIGHT)

    ends = [
        _curve(row, int(row.model == foremost) if foremost else _series(number), across)
        for number, row in enumerate(rows)
    ]
    named = [curve for curve in ends if curve.series]
    heights = _spread([curve.stops[-1].y for curve in named])
    labelled = [
        dataclasses.replace(curve, label=Label(_CURVE_RIGHT + 14, height, _short(curve.title)))
        for curve, height in zip(named, heights, strict=True)
    ]
    ticks = tuple(Tick(across(radius), _radius(board.norm, radius)) for radius in sorted(radii))
    # Grey lines are drawn first, so that coloured lines are on top of them.
    drawn = (*(curve for curve in ends if not curve.series), *labelled)
    return Chart(ticks, _ticks(0, 1, BOTTOM, TOP), _CURVE_RIGHT, curves=drawn)


def nearest(place: int) -> slice:
    """Return the slice of the rows whose curves are on the page of the model in row `place`."""
    return slice(max(0, place - _NEAREST), place + _NEAREST + 1)


def _curve(row: BoardRow, series: int, across: Callable[[float], float]) -> Curve:
    points = sorted(row.curve, key=lambda point: point.radius)
    stops = [_stop(across(point.radius), point.robust, point.attacks) for point in points]
    return Curve(series, row.model, (_stop(across(0.0), row.clean), *stops))


def _radius(norm: str, radius: float) -> str:
    return f"{255 * radius:.4g}" if norm == "Linf" else f"{radius:.4g}"


def _stop(x: float, accuracy: Accuracy, attacks: tuple[str, ...] = ()) -> CurveVertex:
    y, top, bottom = (_between(value, 0, 1, BOTTOM, TOP) for value in (accuracy.value, accuracy.high, accuracy.low))
    return CurveVertex(x, y, top, bottom, attacks)


def _series(number: int) -> int:
    return number + 1 if number < COLOURS else 0


def _short(name: str) -> str:
    return shown(shown(name, 60), _LONGEST)


def _span(accuracies: Sequence[Accuracy]) -> tuple[float, float]:
    """Return the lower and upper end of an axis that contains all intervals.

    The ends are multiples of 0.1 in [0, 1].
    """
    low = min((each.low for each in accuracies), default=0.0)
    high = max((each.high for each in accuracies), default=1.0)
    return max(0, int(low * 10)) / 10, min(10, int(high * 10) + 1) / 10


def _between(value: float, low: float, high: float, start: float, stop: float) -> float:
    return round(start + (value - low) / (high - low) * (stop - start), 1)


def _ticks(low: float, high: float, start: float, stop: float) -> tuple[Tick, ...]:
    step = 1 if high - low < 0.6 else 2
    tenths = [tenth for tenth in range(round(low * 10), round(high * 10) + 1) if tenth % step == 0]
    return tuple(Tick(_between(tenth / 10, low, high, start, stop), str(10 * tenth)) for tenth in tenths)


def _labels(marks: Sequence[ScatterPoint]) -> list[Label | None]:
    """Return a label for each point. It is None for a point without space for a label.

    Eight positions next to the point are tried in order, then eight positions that need a leader line. The first one
    is used that is free and is nearer to this point than to all others.
    """
    taken = [(mark.x - 5, mark.y - 5, mark.x + 5, mark.y + 5) for mark in marks]
    taken += [(mark.left, mark.y - 1, mark.right, mark.y + 1) for mark in marks]
    labels: list[Label | None] = []
    for mark in marks:
        near = (each for each in _around(mark) if _is_free(each.box, taken) and _is_nearest(each.box, mark, marks))
        far = (each for each in _away(mark) if _is_free(each.box, taken))
        label = next(chain(near, far), None)
        if label:
            taken.append(label.box)
        labels.append(label)
    return labels


def _around(mark: ScatterPoint) -> list[Label]:
    name, x, y = _short(mark.model), mark.x, mark.y
    sides = [(mark.right + 5, y + 4.5, "start"), (mark.left - 5, y + 4.5, "end")]
    above = [(x, mark.top - 6, "middle"), (x + 6, y - 6, "start"), (x - 6, y - 6, "end")]
    below = [(x, mark.bottom + 15, "middle"), (x + 6, y + 15, "start"), (x - 6, y + 15, "end")]
    return [Label(round(right, 1), round(down, 1), name, anchor) for right, down, anchor in sides + above + below]


def _away(mark: ScatterPoint) -> list[Label]:
    """Return positions further from the point, at the end of a leader line."""
    name, x, y = _short(mark.model), mark.x, mark.y
    places = [(x + side * across, y + down) for across, down in _LEADERS for side in (1, -1)]
    return [
        Label(round(right, 1), round(down, 1), name, "start" if right > x else "end", has_leader=True)
        for right, down in places
    ]


def _is_nearest(box: Box, own: ScatterPoint, marks: Sequence[ScatterPoint]) -> bool:
    return all(_distance(box, own) < _distance(box, mark) for mark in marks if mark is not own)


def _distance(box: Box, mark: ScatterPoint) -> float:
    left, top, right, bottom = box
    return math.hypot(max(left - mark.x, 0, mark.x - right), max(top - mark.y, 0, mark.y - bottom))


def _is_free(box: Box, taken: Sequence[Box]) -> bool:
    left, top, right, bottom = box
    if left < LEFT or right > WIDTH or top < TOP - 8 or bottom > BOTTOM:
        return False
    return not any(left < other[2] and other[0] < right and top < other[3] and other[1] < bottom for other in taken)


def _spread(heights: Sequence[float]) -> list[float]:
    """Return y positions for the names of the curves. Two names are at least one line apart.

    `heights` are the y positions of the right ends of the curves.
    """
    found = list(heights)
    last = TOP - _LINE
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    for below, index in zip(reversed(range(len(order))), order, strict=True):
        # Names must not overlap. `below` is the number of names that will be placed below this one, so space for them
        # is left above BOTTOM.
        last = found[index] = round(max(last + _LINE, min(heights[index], BOTTOM - _LINE * below)), 1)
    return found
