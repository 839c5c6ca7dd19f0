"""How a diagnosis is shown: a table, and curves over the radius."""

from collections.abc import Iterable
from pathlib import Path

from robustbench_vlm.analysis.diagnose import Diagnoses, Diagnosis
from robustbench_vlm.cli.render.layout import Columns, Row, table, wrapped
from robustbench_vlm.cli.render.screen import Line, duration
from robustbench_vlm.core.files import save_figure
from robustbench_vlm.core.text import plot_text
from robustbench_vlm.core.threat import parse_eps

_COLUMNS = Columns(("model",), "eps", ("accuracy", "modality gap", "gradient norm", "effective rank"))
_CURVES = {
    "modality_gap": "modality gap",
    "gradient_norm": "gradient norm",
    "effective_rank": "effective rank",
}


def lines(found: Diagnoses, width: int) -> list[Line]:
    """Return a row for each model and radius, and what the numbers are."""
    return [
        *table([_row(each) for each in found.diagnoses], _COLUMNS, width),
        Line(""),
        *(line for sentence in _footer(found) for line in wrapped(sentence, width, indent="  ")),
    ]


def plot(found: Diagnoses, path: Path | None) -> None:
    """Draw gap, gradient norm and rank against the radius, a line for each model; nothing without a `path`."""
    if path is None:
        return
    from matplotlib.figure import Figure

    models: dict[str, list[Diagnosis]] = {}
    for each in sorted(found.diagnoses, key=lambda each: parse_eps(each.eps)):
        models.setdefault(each.model, []).append(each)
    linf = found.diagnoses[0].norm == "Linf"
    figure = Figure(figsize=(10, 3), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, len(_CURVES)), _CURVES.items(), strict=True):
        for model, curve in models.items():
            radii = [float(parse_eps(each.eps) * (255 if linf else 1)) for each in curve]
            axes.plot(radii, [getattr(each, name) for each in curve], marker="o", label=plot_text(model))
        axes.set(xlabel=f"eps{' x 255' if linf else ''}, {plot_text(found.attack)}", title=label)
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    axes.legend()
    save_figure(figure, path)


def _row(each: Diagnosis) -> Row:
    return {
        "model": each.model,
        "eps": each.eps,
        "accuracy": f"{100 * each.accuracy:.1f}",
        "modality gap": f"{each.modality_gap:.3f}",
        "gradient norm": f"{each.gradient_norm:.3g}",
        "effective rank": f"{each.effective_rank:.1f}",
    }


def _footer(found: Diagnoses) -> Iterable[str]:
    first = found.diagnoses[0]
    count = sum(each.n for each in first.datasets)
    sets = f"{len(first.datasets)} dataset{'s' if len(first.datasets) > 1 else ''}"
    yield (
        f"{found.track}, {first.norm}, the images at which {found.attack} ends, means over {sets};"
        f" protocol {found.protocol}, {count} samples, {duration(found.seconds)}"
    )
    yield "accuracy: of these images, in %; the robust accuracy of `vlmbench run` is that of the worst image found"
    yield "modality gap: distance of the means of unit image and unit text embeddings, 0 to 2"
    yield "gradient norm: mean L2 norm of the cross-entropy's gradient, pixels in [0, 1]"
    yield (
        f"effective rank: of the image embeddings of all datasets together, at most {min(count, found.dimensions)},"
        " and less where samples are few"
    )
