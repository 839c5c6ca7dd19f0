"""The command `vlmbench transfer`: tests the adversarial images made for each model on every model."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from robustbench_vlm.cli import options
from robustbench_vlm.cli.options import DEFAULT_TRACK, Json, option, with_options_of
from robustbench_vlm.cli.render.output import Line, answer, duration, note
from robustbench_vlm.cli.render.progress_bar import progress
from robustbench_vlm.cli.render.text_table import Columns, Row, table, wrapped
from robustbench_vlm.core.numbers import percent, percent_interval
from robustbench_vlm.core.text import terminal_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from robustbench_vlm.analysis.transfer import Transfer
    from robustbench_vlm.engine.request import Request

_MODEL = "Model: a name, a card file or open_clip:ARCH/TAG. Default: all bundled models. Repeat for more."
_Models = Annotated[list[str] | None, option("--model", "NAME", _MODEL)]
_Attack = Annotated[str, option("--attack", "NAME", "Attack that makes the images: see `vlmbench list attacks`.")]
_Eps = Annotated[
    str,
    option(
        "--eps", "EPS", "Radius as a fraction of the pixel range, such as 8/255. Default: the track's standard radius."
    ),
]
_Samples = Annotated[str, option("--samples", "N|all", "Samples per dataset.", alias="--limit")]
_Plot = Annotated[Path | None, option("--plot", "FILE", "PNG or SVG file for a heat map of the accuracies.")]
_Save = Annotated[
    Path | None,
    option("--save", "DIR", "Folder that the adversarial images are written to: one lossless file per model."),
]


def request_of(
    named: options.ModelArguments = None,
    model: _Models = None,
    attack: _Attack = "pgd-20",
    dataset: options.Datasets = None,
    eps: _Eps = "",
    norm: options.Norm = "",
    track: options.TrackName = DEFAULT_TRACK,
    protocol: options.ProtocolName = "",
    samples: _Samples = "24",
    data: options.DataFolder = None,
    workers: options.Workers = 0,
    batch_size: options.BatchSize = 0,
    device: options.Device = "",
) -> "Request":
    """Return the request for the given options. Raise UserError if a value is not allowed."""
    from robustbench_vlm.engine.request import Request
    from robustbench_vlm.engine.resources import Resources
    from robustbench_vlm.models.card import bundled_names

    return Request(
        models=tuple([*(named or ()), *(model or ())] or bundled_names(track)),
        attacks=(attack,),
        track=track,
        datasets=tuple(dataset or ()),
        eps=(eps,) if eps else (),
        norm=norm,
        protocol=protocol,
        samples=options.sample_count(samples),
        data=data,
        resources=Resources(device, workers, batch_size),
    )


def _transfer(request: "Request", plot: _Plot = None, save: _Save = None, as_json: Json = False) -> None:
    """Test the adversarial images made for each model on every model.

    If images made for other models break samples of a model that its own attack does not break, the gradients of this
    model may be masked. `vlmbench dispute` reads the images that --save writes.
    """
    from robustbench_vlm.analysis import transfer as transfers
    from robustbench_vlm.core.files import save_figure

    options.check_plot(plot)
    options.question_eps(request.eps, quiet=as_json)
    note("reading models and images", quiet=as_json)
    with progress("images", quiet=as_json) as on_progress:
        found = transfers.transfer(request, save, on_progress=on_progress)
    if plot is not None:
        save_figure(heat_map(found), plot)
    answer(found.to_json(), lambda width: list(lines(found, width)), as_json=as_json)


transfer = with_options_of(request_of, _transfer)


def lines(found: "Transfer", width: int) -> Iterator[Line]:
    """Return the transfer matrix, and a table with the clean and robust accuracies of each model.

    If these two tables are too wide, return one table with a row for each accuracy.
    """
    from rich.cells import cell_len

    sets = f"{len(found.datasets)} dataset{'s' if len(found.datasets) > 1 else ''}"
    about = f"{found.attack}, {found.norm} {found.eps}, accuracies in %, means over {sets}, {found.n} samples"
    numbers = tuple(str(number + 1) for number in range(len(found.targets)))
    matrix = table(list(_matrix(found)), Columns((), "images of", numbers), width)
    own = table(list(_own(found)), Columns((), "model", ("clean", "own images", "all images")), width)
    wide = [*matrix, Line(""), *own]
    fits = all(cell_len(line.text) <= width for line in wide)
    long = Columns(("model",), "images of", ("accuracy", "95 % interval"))
    yield from wrapped(about, width)
    yield Line("")
    yield from wide if fits else table(list(_long(found)), long, width)
    yield Line("")
    for sentence in found.warnings:
        yield from (Line(line.text, "yellow") for line in wrapped(f"! {sentence}", width, indent="  "))
    for sentence in _footer(found, matrix=fits):
        yield from wrapped(sentence, width, indent="  ")


def heat_map(found: "Transfer") -> "Figure":
    """Draw the transfer matrix as a heat map.

    Each row is a model for which the images were made. Each column is a model that classifies these images. Two more
    rows have the clean accuracy and the accuracy on the images of all models together.
    """
    from matplotlib.figure import Figure

    names = [terminal_text(target.model) for target in found.targets]
    rows = [*names, "clean", "all images"]
    shares = [[target.mean.under[source.model] for target in found.targets] for source in found.targets]
    shares += [[target.mean.clean for target in found.targets], [target.mean.worst for target in found.targets]]
    figure = Figure(figsize=(3 + 0.75 * len(names), 2 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.imshow([[100 * share.value for share in row] for row in shares], vmin=0, vmax=100, aspect="auto")
    for row, values in enumerate(shares):
        for column, share in enumerate(values):
            ink = "black" if share.value > 0.5 else "white"
            axes.text(column, row, percent(share.value), ha="center", va="center", color=ink, fontsize=9)
    axes.axhline(len(names) - 0.5, color="white", linewidth=3)
    # `parse_math` is off, because matplotlib would read text between two dollar signs as a formula.
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(range(len(rows)), rows, parse_math=False)
    axes.set(xlabel="model that classifies the images", ylabel="model that the images were made for")
    axes.set_title(f"accuracy in %, {found.attack}, {found.norm} {found.eps}", parse_math=False)
    return figure


def _matrix(found: "Transfer") -> Iterator[Row]:
    for number, source in enumerate(found.targets, start=1):
        shares = {str(n): target.mean.under[source.model] for n, target in enumerate(found.targets, start=1)}
        yield {"images of": f"{number} {source.model}", **{key: percent(share.value) for key, share in shares.items()}}


def _own(found: "Transfer") -> Iterator[Row]:
    for number, target in enumerate(found.targets, start=1):
        mean = target.mean
        shares = {"clean": mean.clean, "own images": mean.robust, "all images": mean.worst}
        cells = {
            key: f"{percent(share.value)} ({percent_interval(share.low, share.high)})" for key, share in shares.items()
        }
        yield {"model": f"{number} {target.model}", **cells}


def _long(found: "Transfer") -> Iterator[Row]:
    for target in found.targets:
        mean = target.mean
        own = {source if source != target.model else "itself": share for source, share in mean.under.items()}
        for name, share in {"none: clean": mean.clean, **own, "all": mean.worst}.items():
            numbers = {"accuracy": percent(share.value), "95 % interval": percent_interval(share.low, share.high)}
            yield {"model": target.model, "images of": name, **numbers}


def _footer(found: "Transfer", *, matrix: bool) -> Iterator[str]:
    if matrix:
        yield (
            "columns: the model that classifies the images, by its number in the rows; the diagonal is the"
            " model's robust accuracy"
        )
        yield "in brackets: 95 % intervals"
    yield (
        "images of a model: there is one image for each sample. For a broken sample, it is the adversarial image."
        " For a misclassified sample, it is the clean image. For a robust sample, it is the image with the"
        " smallest margin"
    )
    yield "all images: the share of samples for which the images of all models are classified correctly"
    yield f"{found.track}, protocol {found.protocol}, {duration(found.seconds)}"
