"""The command `vlmbench show sample`: shows one sample clean and under attack, as a figure and as text."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustbench_vlm.cli import options
from robustbench_vlm.cli.options import DEFAULT_TRACK, Json, option
from robustbench_vlm.cli.render.output import Line, answer, note
from robustbench_vlm.cli.render.progress_bar import progress
from robustbench_vlm.cli.render.text_table import Columns, Row, table, wrapped
from robustbench_vlm.core.numbers import percent
from robustbench_vlm.core.records import CLEAN
from robustbench_vlm.core.text import terminal_text
from robustbench_vlm.core.threat import distance_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from robustbench_vlm.analysis.inspect_sample import Predicted, SampleUnderModel, SampleView

_CELLS = 28
"""Largest width of a class name in the figure, in characters of normal width. Longer names are cut in the figure, but
not in the text output."""
_RIGHT, _OTHER = "#8fc98f", "#d0d0d0"

_Dataset = Annotated[str, typer.Argument(metavar="DATASET", help="Dataset: see `vlmbench list datasets`.")]
_Sample = Annotated[
    str,
    typer.Argument(
        metavar="ID|NUMBER",
        help="Sample: its id in the records, or its position among the samples of the protocol, from 0.",
    ),
]
_Models = Annotated[
    list[str] | None,
    option("--model", "NAME", "Model, as in `vlmbench run`. Default: the track's base model. Repeat for more."),
]
_Attack = Annotated[str, option("--attack", "NAME", "Attack: see `vlmbench list attacks`.")]
_Eps = Annotated[
    str,
    option(
        "--eps", "EPS", "Radius as a fraction of the pixel range, such as 8/255. Default: the track's standard radius."
    ),
]
_Out = Annotated[Path, option("--out", "FILE", "PNG or SVG file for the figure.")]


def show_sample(
    dataset: _Dataset,
    sample: _Sample,
    model: _Models = None,
    attack: _Attack = "pgd-20",
    eps: _Eps = "",
    norm: options.Norm = "",
    track: options.TrackName = DEFAULT_TRACK,
    protocol: options.ProtocolName = "",
    samples: options.SampleCount = "",
    data: options.DataFolder = None,
    device: options.Device = "",
    out: _Out = Path("sample.png"),
    as_json: Json = False,
) -> None:
    """Show one sample clean and under attack.

    Draws one row per model: the clean image, the magnified perturbation, the adversarial image, and the five most
    probable classes of both images. If the sample stays robust, the attacked image with the smallest margin of the true
    class is shown instead of an adversarial image.
    """
    from robustbench_vlm.analysis.inspect_sample import inspect_sample
    from robustbench_vlm.core.files import save_figure
    from robustbench_vlm.engine.request import Request
    from robustbench_vlm.engine.resources import Resources
    from robustbench_vlm.tracks import TRACKS

    options.check_plot(out, "--out")
    request = Request(
        models=tuple(model or [TRACKS.load(track).base]),
        attacks=(attack,),
        track=track,
        datasets=(dataset,),
        eps=(eps,) if eps else (),
        norm=norm,
        protocol=protocol,
        samples=options.sample_count(samples),
        data=data,
        resources=Resources(device, workers=1),
    )
    options.question_eps(request.eps, quiet=as_json)
    note("reading models and images", quiet=as_json)
    with progress("models", quiet=as_json) as on_progress:
        found = inspect_sample(request, sample, on_progress=on_progress)
    save_figure(figure(found), out)
    document = {**found.to_json(), "figure": str(out)}
    answer(document, lambda width: list(lines(found, out, width)), as_json=as_json)


def lines(found: "SampleView", out: Path, width: int) -> Iterator[Line]:
    """Return the verdict (robust or broken) and class probabilities of each model.

    The probabilities are those of the true class and of the most probable classes of the clean and the adversarial
    image.
    """
    yield from wrapped(f"{_about(found)}; probabilities in %", width)
    for each in found.models:
        yield Line("")
        yield from wrapped(
            f"{each.model}: {_verdict(each)}, perturbation {distance_text(found.norm, each.distance)}",
            width,
            indent="  ",
        )
        yield from table(list(_rows(found, each)), Columns((), "class", ("clean", "adversarial")), width)
    yield Line("")
    yield from wrapped(f"{found.track}, protocol {found.protocol}, sample number {found.position}", width, indent="  ")
    yield from wrapped(f"figure in {out}, perturbations magnified {_factor(found)} times", width, indent="  ")


def figure(found: "SampleView") -> "Figure":
    """Draw one row for each model: clean image, perturbation, adversarial image, and the top classes of both images.

    In the image of the perturbation, mid-grey means no change.
    """
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(12, 0.7 + 2.1 * len(found.models)), layout="constrained")
    # `parse_math` is off, because matplotlib would read text between two dollar signs as a formula.
    drawn.suptitle(terminal_text(_about(found)), parse_math=False)
    grid = drawn.subplots(len(found.models), 5, squeeze=False, width_ratios=(1, 1, 1, 1.5, 1.5))
    for row, each in zip(grid, found.models, strict=True):
        shown = (found.image, 0.5 + found.magnification * (each.image - found.image), each.image)
        for axes, pixels in zip(row, shown, strict=False):
            axes.imshow(pixels.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(f"{terminal_text(each.model)}\n{_verdict(each)}", fontsize=9, parse_math=False)
        _draw_bars(row[3], each.clean, found.label)
        _draw_bars(row[4], each.adversarial, found.label)
    titles = ("clean", f"perturbation x {_factor(found)}, grey: 0", "adversarial", "clean, %", "adversarial, %")
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=9)
    return drawn


def _draw_bars(axes: "Axes", predicted: "Sequence[Predicted]", label: str) -> None:
    from rich.cells import cell_len, set_cell_size

    from robustbench_vlm.analysis.inspect_sample import TOP

    leading = predicted[:TOP]
    colours = [_RIGHT if each.name == label else _OTHER for each in leading]
    axes.barh(range(len(leading)), [100 * each.probability for each in leading], color=colours)
    for place, each in enumerate(leading):
        name = terminal_text(each.name)
        short = name if cell_len(name) <= _CELLS else f"{set_cell_size(name, _CELLS - 1).rstrip()}…"
        weight = "bold" if each.name == label else "normal"
        about: dict[str, Any] = {"va": "center", "fontsize": 9, "weight": weight, "clip_on": True, "in_layout": False}
        axes.text(1, place, f"✓ {short}" if each.name == label else short, parse_math=False, **about)
        axes.text(99, place, percent(each.probability), ha="right", **about)
    axes.set(xlim=(0, 100), ylim=(TOP - 0.5, -0.5), xticks=[], yticks=[])


def _rows(found: "SampleView", each: "SampleUnderModel") -> Iterator[Row]:
    from robustbench_vlm.analysis.inspect_sample import TOP

    leading = {one.name for one in (*each.clean[:TOP], *each.adversarial[:TOP])} | {found.label}
    after = {one.name: one.probability for one in each.adversarial}
    for one in each.clean:
        if one.name in leading:
            numbers = {"clean": percent(one.probability), "adversarial": percent(after[one.name])}
            yield {"class": f"{one.name} (right)" if one.name == found.label else one.name, **numbers}


def _about(found: "SampleView") -> str:
    return f"{found.dataset} {found.sample_id}, {found.label}; {found.attack}, {found.norm} {found.eps}"


def _verdict(each: "SampleUnderModel") -> str:
    words = {"": "robust", CLEAN: "wrong when clean"}
    return words.get(each.result.broken_by, terminal_text(f"broken by {each.result.broken_by}"))


def _factor(found: "SampleView") -> str:
    return f"{found.magnification:.3g}"
