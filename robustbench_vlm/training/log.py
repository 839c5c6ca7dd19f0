"""The record of a training: a CSV file that pandas reads, and a picture of its curves."""

import csv
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from robustbench_vlm.core.files import save_figure, write_whole


@dataclass(frozen=True)
class Row:
    """One logged step; accuracies are those of its batch before the step, in [0, 1]."""

    step: int
    loss: float
    clean: float
    robust: float
    """Against the inner attack."""
    rate: float
    """The learning rate."""
    seconds: float
    """Since the training began, without interruptions."""

    @property
    def state(self) -> str:
        """The row in words."""
        return f"loss {self.loss:.3f}, batch {self.clean:.0%} clean, {self.robust:.0%} robust"


COLUMNS = tuple(field.name for field in fields(Row))


class Log:
    """The file log.csv of a training; rows after `step`, from a run that was cut off, are dropped when it opens."""

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        rows = [row for row in read_log(path) if row.step <= step] if path.exists() else []
        write_whole(path, lambda partial: _write(partial, rows))

    def add(self, row: Row) -> None:
        """Append a row at once, so that a killed training keeps it."""
        with self._path.open("a", newline="") as file:
            csv.writer(file).writerow(astuple(row))


def read_log(path: Path) -> list[Row]:
    """Return a log's rows; a last line that was cut off is left out."""
    with path.open(newline="") as file:
        lines = [line for line in csv.reader(file) if len(line) == len(COLUMNS)][1:]
    return [Row(int(line[0]), *(float(value) for value in line[1:])) for line in lines]


def plot_log(rows: list[Row], path: Path, title: str) -> None:
    """Draw loss and accuracies of the batches against the step into a PNG or SVG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [row.step for row in rows]
    left.plot(steps, [row.loss for row in rows], color="black", marker=".")
    left.set(xlabel="step", ylabel="loss", title=title)
    for name, colour in (("clean", "tab:blue"), ("robust", "tab:red")):
        right.plot(steps, [100 * getattr(row, name) for row in rows], color=colour, label=name, marker=".")
    right.set(xlabel="step", ylabel="accuracy of the batch, %", ylim=(0, 100))
    right.legend()
    save_figure(figure, path)


def _write(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(astuple(row) for row in rows)
