"""Plots of a comparison: scatter plot of robust and clean accuracy, curves over the radius, and heatmap by dataset."""

from pathlib import Path

from robustbench_vlm.comparison.compare import Comparison
from robustbench_vlm.comparison.tables import MEAN
from robustbench_vlm.core.files import save_figure
from robustbench_vlm.core.numbers import percent
from robustbench_vlm.core.records import Accuracy
from robustbench_vlm.core.text import plot_text

_MARKERS = "os^DvP*X<>"
"""Markers of the models, so that models can be distinguished without colours."""
_DARK = 0.55
"""Heatmap cells above this accuracy have a dark colour, so their text is white."""


def scatter(found: Comparison, path: Path) -> None:
    """Plot every model's mean robust accuracy against its mean clean accuracy, and save the plot to a file.

    The plot also shows the 95 % intervals.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    for number, model in enumerate(found.models):
        axes.errorbar(
            100 * model.clean.value,
            100 * model.robust.value,
            xerr=_arms(model.clean),
            yerr=_arms(model.robust),
            fmt=_MARKERS[number % len(_MARKERS)],
            capsize=2,
            label=plot_text(model.name),
        )
    axes.set(xlabel="clean accuracy, %", ylabel=f"robust accuracy, %, {_threat(found)}", title=_title(found))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    # The legend is outside of the axes, because points may be in any corner.
    figure.legend(loc="outside right upper")
    save_figure(figure, path)


def curves(found: Comparison, path: Path) -> None:
    """Plot every model's mean robust accuracy against the radius, and save the plot to a file.

    The plot also shows the 95 % intervals. The value at radius 0 is the clean accuracy.
    """
    from matplotlib.figure import Figure

    scale = 255 if found.norm == "Linf" else 1
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    for number, model in enumerate(found.models):
        points = [(0.0, model.clean), *((point.radius, point.robust) for point in model.curve if point.radius)]
        radii = [scale * radius for radius, _ in points]
        values = [100 * accuracy.value for _, accuracy in points]
        drawn = axes.plot(radii, values, marker=_MARKERS[number % len(_MARKERS)], label=plot_text(model.name))
        lows, highs = ([100 * getattr(each, side) for _, each in points] for side in ("low", "high"))
        axes.fill_between(radii, lows, highs, alpha=0.2, color=drawn[0].get_color())
    axes.set(
        xlabel=f"eps{' x 255' if scale == 255 else ''}, {found.norm}",
        ylabel=f"robust accuracy, %, {plot_text(found.attack)}",
        title=_title(found),
    )
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    save_figure(figure, path)


def heatmap(found: Comparison, path: Path) -> None:
    """Plot a heatmap of every model's robust accuracy on every dataset and in the mean, and save it to a file."""
    from matplotlib.figure import Figure

    names = [*found.datasets, MEAN]
    values = [
        [*(model.datasets[name].robust.value for name in found.datasets), model.robust.value] for model in found.models
    ]
    figure = Figure(figsize=(3 + 0.6 * len(names), 2 + 0.4 * len(values)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(
        [[100 * value for value in row] for row in values], vmin=0, vmax=100, cmap="Blues", aspect="auto"
    )
    axes.set_xticks(range(len(names)), [plot_text(name) for name in names], rotation=45, ha="right")
    axes.set_yticks(range(len(values)), [plot_text(model.name) for model in found.models])
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            colour = "white" if value > _DARK else "black"
            axes.text(column, row, percent(value), ha="center", va="center", color=colour, fontsize=9)
    axes.axvline(len(names) - 1.5, color="black")
    axes.set_title(f"{_title(found)}: robust accuracy, %, {_threat(found)}")
    figure.colorbar(image, ax=axes)
    save_figure(figure, path)


def _arms(accuracy: Accuracy) -> list[list[float]]:
    """Return the lengths of the lower and the upper error bar in %, as matplotlib expects them."""
    return [[100 * (accuracy.value - accuracy.low)], [100 * (accuracy.high - accuracy.value)]]


def _title(found: Comparison) -> str:
    return f"{plot_text(found.track)}, mean over {len(found.in_mean)} datasets"


def _threat(found: Comparison) -> str:
    return f"{plot_text(found.attack)}, {found.norm} {found.eps}"
