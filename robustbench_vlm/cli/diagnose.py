"""The command `vlmbench diagnose`: modality gap, gradient norm and effective rank of features under attack."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from robustbench_vlm.cli import options
from robustbench_vlm.cli.options import DEFAULT_TRACK, Json, option, with_options_of
from robustbench_vlm.cli.render.output import Line, answer, duration, note
from robustbench_vlm.cli.render.progress_bar import progress
from robustbench_vlm.cli.render.text_table import Columns, Row, table, wrapped
from robustbench_vlm.core.numbers import decimals, percent
from robustbench_vlm.core.text import plot_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from robustbench_vlm.analysis.diagnose import Diagnoses, Diagnosis
    from robustbench_vlm.engine.request import Request

_COLUMNS = Columns(("model",), "eps", ("accuracy", "modality gap", "gradient norm", "effective rank"))
_CURVES = {
    "modality_gap": "modality gap",
    "gradient_norm": "gradient norm",
    "effective_rank": "effective rank",
}

_MODEL = "Model: a name, a card file or open_clip:ARCH/TAG. Default: all bundled models. Repeat for more."
_EPS = "Radius as a fraction of the pixel range, such as 8/255. Default: 0 and the track's radii. Repeat for more."
_Models = Annotated[list[str] | None, option("--model", "NAME", _MODEL)]
_Eps = Annotated[list[str] | None, option("--eps", "EPS", _EPS)]
_Attack = Annotated[str, option("--attack", "NAME", "Attack with a fixed number of steps: fgsm, pgd-N or cw.")]
_Samples = Annotated[str, option("--samples", "N|all", "Samples per dataset.", alias="--limit")]
_Plot = Annotated[Path | None, option("--plot", "FILE", "PNG or SVG file for curves by radius.")]


def request_of(
    named: options.ModelArguments = None,
    model: _Models = None,
    track: options.TrackName = DEFAULT_TRACK,
    dataset: options.Datasets = None,
    eps: _Eps = None,
    attack: _Attack = "pgd-10",
    samples: _Samples = "32",
    data: options.DataFolder = None,
    device: options.Device = "",
) -> "Request":
    """Return the request for the given options. Raise UserError if a value is not allowed."""
    from robustbench_vlm.engine.request import Request
    from robustbench_vlm.engine.resources import Resources
    from robustbench_vlm.models.card import bundled_names
    from robustbench_vlm.tracks import TRACKS

    radii = TRACKS.load(track).eps
    return Request(
        models=tuple([*(named or ()), *(model or ())] or bundled_names(track) or [TRACKS.load(track).base]),
        attacks=(attack,),
        track=track,
        datasets=tuple(dataset or ()),
        eps=tuple(eps or ("0", *radii)),
        samples=options.sample_count(samples),
        data=data,
        resources=Resources(device=device, workers=1),
    )


def _diagnose(request: "Request", plot: _Plot = None, as_json: Json = False) -> None:
    """Measure modality gap, input gradient norm and effective rank of the features under attack.

    These three quantities are related to robustness. They are measured on the images after the last step of an attack.
    """
    from robustbench_vlm.analysis.diagnose import diagnose as measure
    from robustbench_vlm.core.files import save_figure

    options.check_plot(plot)
    options.question_eps(request.eps, quiet=as_json)
    note("reading models and images", quiet=as_json)
    with progress("samples", quiet=as_json) as on_progress:
        found = measure(request, on_progress=on_progress)
    if plot is not None:
        save_figure(figure(found), plot)
    answer(found.to_json(), lambda width: lines(found, width), as_json=as_json)


diagnose = with_options_of(request_of, _diagnose)


def lines(found: "Diagnoses", width: int) -> list[Line]:
    """Return the table, which has a row for each model and radius, and an explanation of its columns."""
    return [
        *table([_row(each) for each in found.diagnoses], _COLUMNS, width),
        Line(""),
        *(line for sentence in _footer(found) for line in wrapped(sentence, width, indent="  ")),
    ]


def figure(found: "Diagnoses") -> "Figure":
    """Draw modality gap, gradient norm and effective rank by radius, with a line for each model."""
    from matplotlib.figure import Figure

    from robustbench_vlm.core.threat import parse_eps

    models: dict[str, list[Diagnosis]] = {}
    for each in sorted(found.diagnoses, key=lambda each: parse_eps(each.eps)):
        models.setdefault(each.model, []).append(each)
    linf = found.diagnoses[0].norm == "Linf"
    drawn = Figure(figsize=(10, 3), layout="constrained")
    for axes, (name, label) in zip(drawn.subplots(1, len(_CURVES)), _CURVES.items(), strict=True):
        for model, curve in models.items():
            radii = [float(parse_eps(each.eps) * (255 if linf else 1)) for each in curve]
            axes.plot(radii, [getattr(each, name) for each in curve], marker="o", label=plot_text(model))
        axes.set(xlabel=f"eps{' x 255' if linf else ''}, {plot_text(found.attack)}", title=label)
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    axes.legend()
    return drawn


def _row(each: "Diagnosis") -> Row:
    return {
        "model": each.model,
        "eps": each.eps,
        "accuracy": percent(each.accuracy),
        "modality gap": decimals(each.modality_gap, 3),
        "gradient norm": f"{each.gradient_norm:.3g}",
        "effective rank": decimals(each.effective_rank, 1),
    }


def _footer(found: "Diagnoses") -> Iterable[str]:
    first = found.diagnoses[0]
    count = sum(each.n for each in first.datasets)
    datasets = f"{len(first.datasets)} dataset{'s' if len(first.datasets) > 1 else ''}"
    yield (
        f"{found.track}, {first.norm}, images after the last step of {found.attack}, means over {datasets};"
        f" protocol {found.protocol}, {count} samples, {duration(found.seconds)}"
    )
    yield (
        "accuracy: in %, on the image of each sample after the last step; `vlmbench run` uses the strongest image that"
        " the attack found"
    )
    yield (
        "modality gap: the distance, from 0 to 2, between the mean image embedding and the mean text embedding;"
        " all embeddings have length 1"
    )
    yield "gradient norm: the mean L2 norm of the gradient of the cross-entropy with respect to the pixels in [0, 1]"
    yield (
        "effective rank: the effective rank of the image embeddings of all datasets together; it is at most"
        f" {min(count, found.dimensions)}, and lower if there are few samples"
    )
