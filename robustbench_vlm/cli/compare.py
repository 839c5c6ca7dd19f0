"""The command `vlmbench compare`: compares models on the samples that are in the records of all models."""

from pathlib import Path
from typing import Annotated

import typer

from robustbench_vlm.cli import completion
from robustbench_vlm.cli.options import DEFAULT_TRACK, Json, TrackName, check_plot, option
from robustbench_vlm.cli.render.output import note
from robustbench_vlm.core.errors import UserError

_NAMES = "Names of models on the leaderboard or in ./runs, entry files, or run folders."
_Names = Annotated[list[str], typer.Argument(metavar="NAME", help=_NAMES, autocompletion=completion.models)]
_Attack = Annotated[str, option("--attack", "NAME", "Attack whose records are compared.")]
_Eps = Annotated[
    str,
    option(
        "--eps", "EPS", "Radius as a fraction of the pixel range, such as 8/255. Default: the track's standard radius."
    ),
]
_Format = Annotated[str, option("--format", "NAME", "Format of the output: table, markdown, latex, csv or html.")]
_NoIntervals = Annotated[
    bool, typer.Option("--no-intervals", help="Leave the intervals out of the LaTeX table. Needs --format latex.")
]
_Plot = Annotated[Path | None, option("--plot", "FILE", "PNG or SVG file for a plot of robust against clean accuracy.")]
_Curves = Annotated[Path | None, option("--curves", "FILE", "PNG or SVG file for a plot of robust accuracy by radius.")]
_Heatmap = Annotated[
    Path | None, option("--heatmap", "FILE", "PNG or SVG file for a heat map: robust accuracy by model and dataset.")
]
_Out = Annotated[Path | None, option("--out", "FILE", "File that gets the output instead of the terminal.")]


def compare(
    names: _Names,
    attack: _Attack = "autoattack",
    track: TrackName = DEFAULT_TRACK,
    eps: _Eps = "",
    format: _Format = "table",
    no_intervals: _NoIntervals = False,
    plot: _Plot = None,
    curves: _Curves = None,
    heatmap: _Heatmap = None,
    out: _Out = None,
    as_json: Json = False,
) -> None:
    """Compare models sample by sample.

    Uses the samples that are in the records of all models. Shows accuracies with intervals, paired tests that are
    corrected for the number of tests, and the possible ranks.
    """
    from robustbench_vlm.cli.render import comparison_tables
    from robustbench_vlm.comparison import plots
    from robustbench_vlm.comparison.compare import compare as compare_sources
    from robustbench_vlm.core.threat import parse_eps
    from robustbench_vlm.leaderboard.sources import read_sources
    from robustbench_vlm.tracks import TRACKS

    comparison_tables.check_format(format)
    if no_intervals and format != "latex":
        raise UserError(f"--no-intervals is for LaTeX tables, got --format {format}: add --format latex")
    figures = {
        "--plot": (plot, plots.scatter),
        "--curves": (curves, plots.curves),
        "--heatmap": (heatmap, plots.heatmap),
    }
    for name, (path, _) in figures.items():
        check_plot(path, name)
    note("reading records", quiet=as_json)
    sources = read_sources(names, track, attack=attack, runs=Path("runs"))
    found = compare_sources(sources, TRACKS.load(track), attack=attack, eps=parse_eps(eps) if eps else None)
    for path, draw in figures.values():
        if path is not None:
            draw(found, path)
    comparison_tables.show(found, format, out, intervals=not no_intervals, as_json=as_json)
