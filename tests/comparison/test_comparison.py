"""Test the command `compare`: terminal widths, formats and plots."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from made_up_results import evidence, write_run
from matplotlib.cbook import is_math_text
from matplotlib.image import imread
from matplotlib.text import Text
from rich.cells import cell_len

from robustbench_vlm.cli.main import run_command
from robustbench_vlm.cli.render.comparison_tables import lines
from robustbench_vlm.comparison import plots
from robustbench_vlm.comparison.align import ModelRecords
from robustbench_vlm.comparison.compare import Comparison, compare
from robustbench_vlm.core.threat import parse_eps
from robustbench_vlm.tracks import MINI

DATASETS = ("shapes", "low-contrast")
VERDICTS = {
    "clip": [*["apgd-ce"] * 55, *[""] * 3, *["clean"] * 2],
    "agft": [*["apgd-ce"] * 10, *["square"] * 2, *[""] * 30, *["clean"] * 18],
    "tecoa": [*["apgd-ce"] * 11, *["square"] * 2, *[""] * 29, *["clean"] * 18],
}
HOSTILE = "<b>\x1b[31m$x$_[link](x)"


def source(name: str, *, like: str = "", warnings: tuple[str, ...] = ()) -> ModelRecords:
    return ModelRecords(
        name,
        tuple(
            evidence(name, VERDICTS[like or name], dataset, eps=eps, warnings=warnings)
            for dataset in DATASETS
            for eps in ("2.5/255", "5/255", "10/255")
        ),
    )


@pytest.fixture(scope="module")
def found() -> Comparison:
    return compare([source("clip", warnings=("robust-near-chance",)), source("agft"), source("tecoa")], MINI)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty folder and write a run of each model to it."""
    monkeypatch.chdir(tmp_path)
    for name in VERDICTS:
        write_run(source(name).evidence, Path("runs"))
    return tmp_path


def names(*options: str) -> list[str]:
    return ["compare", *(f"runs/mini/{name}" for name in VERDICTS), *options]


@pytest.mark.parametrize("width", [40, 60, 80, 10_000])
def test_every_number_is_shown_at_every_width(found: Comparison, width: int) -> None:
    shown = [line.text for line in lines(found, width)]
    assert all(cell_len(line) <= width for line in shown)
    text = " ".join(" ".join(shown).split())
    for expected in ("50.0 37.7-62.3*", "5.0 1.7-13.7", "70.0 57.5-80.1", "96.7 88.6-99.1*", "robust-near-chance"):
        assert expected in text, expected
    # 30, 29 and 3 of 60 samples are robust. Only the third model differs significantly from the first two.
    assert "1-2" in text and "agft - tecoa" in text and "+1.7" in text


def test_a_table_at_80_columns(found: Comparison) -> None:
    shown = [line.text for line in lines(found, 80)]
    table = shown[shown.index("Means") + 1 :]
    # Half the width of an interval is 0.98 sqrt(2 a (1 - a) / 59) with a = (successes + 1/2) / 61.
    assert table[:4] == [
        "model  rank             robust  clean rank               clean",
        "clip      3   5.0   (0.8-9.2)            1  96.7 (93.1-100.0)*",
        "agft    1-2  50.0 (41.0-59.0)*         2-3   70.0 (61.7-78.3)",
        "tecoa   1-2  48.3 (39.3-57.3)*         2-3   70.0 (61.7-78.3)",
    ]
    start = shown.index("Samples broken by each stage")
    assert shown[start + 1 : start + 5] == [
        "model  clean  apgd-ce  square  robust",
        "clip       4      110       0       6",
        "agft      36       20       4      60",
        "tecoa     36       22       4      58",
    ]
    start = shown.index("Mean robust accuracy by Linf radius")
    assert shown[start + 1 : start + 3] == ["model  2.5/255  5/255  10/255", "clip       5.0    5.0     5.0"]


def test_the_tables_of_one_model_have_no_differences() -> None:
    shown = "\n".join(line.text for line in lines(compare([source("agft")], MINI), 80))
    assert "difference" not in shown and "\np:" not in shown


def test_control_characters_in_a_name_are_escaped() -> None:
    shown = "\n".join(line.text for line in lines(compare([source(HOSTILE, like="agft"), source("clip")], MINI), 80))
    assert "\x1b" not in shown and "\\x1b[31m" in shown


def test_json_output_is_only_the_document(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(names("--json")) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert printed.err == "" and [model["rank"] for model in document["models"]] == ["3", "1-2", "1-2"]
    assert [point["eps"] for point in document["models"][0]["curve"]] == ["2.5/255", "5/255", "10/255"]


def test_csv_has_a_row_for_every_model_and_dataset(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(names("--format", "csv", "--eps", "10/255")) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["model"], row["dataset"]) for row in rows] == [
        (model, dataset) for model in VERDICTS for dataset in (*DATASETS, "mean")
    ]
    assert {row["eps"] for row in rows} == {"10/255"}
    assert [row["robust_best"] for row in rows] == ["no"] * 3 + ["yes"] * 6
    assert float(rows[3]["robust"]) == 0.5 and rows[5]["rank"] == "1-2" and rows[3]["n"] == "60"


@pytest.mark.parametrize(
    ("format", "ties"),
    [
        ("markdown", "| shapes | 5.0 (1.7-13.7) | **50.0 (37.7-62.3)** | **48.3 (36.2-60.7)** |"),
        ("latex", r"& 5.0 & 5.0 \\"),
        ("html", "<td><b>50.0 (37.7-62.3)</b></td>\n<td><b>48.3 (36.2-60.7)</b></td>"),
        ("table", "shapes        tecoa  48.3 36.2-60.7*  70.0 57.5-80.1"),
    ],
)
def test_the_best_models_are_marked_in_every_format(
    runs: Path, capsys: pytest.CaptureFixture[str], format: str, ties: str
) -> None:
    assert run_command(names("--format", format, "--out", f"found.{format}")) == 0
    assert capsys.readouterr().out == ""
    assert ties in Path(f"found.{format}").read_text(encoding="utf-8")
    assert run_command(names("--format", format)) == 0
    assert ties in capsys.readouterr().out


def test_plots_have_the_format_of_their_file_names(runs: Path) -> None:
    options = ("--plot", "scatter.svg", "--curves", "curves.png", "--heatmap", "heat.SVG")
    assert run_command(names(*options)) == 0
    for name in ("scatter.svg", "heat.SVG"):
        assert ElementTree.parse(name).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert imread("curves.png").std() > 0.01


def test_plots_show_every_accuracy(found: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    for draw in (plots.scatter, plots.curves, plots.heatmap):
        draw(found, tmp_path / "x.png")
    scatter, curves, heat = (figure.axes[0] for figure in figures)
    points = [container.lines[0].get_xydata()[0] for container in scatter.containers]
    assert points == [pytest.approx((100 * model.clean.value, 100 * model.robust.value)) for model in found.models]
    for line, model in zip(curves.lines, found.models, strict=True):
        radii = [0.0, *(float(255 * parse_eps(point.eps)) for point in model.curve)]
        values = [100 * model.clean.value, *(100 * point.robust.value for point in model.curve)]
        assert list(line.get_xdata()) == pytest.approx(radii) and list(line.get_ydata()) == pytest.approx(values)
    assert [text.get_text() for text in heat.texts] == ["5.0"] * 3 + ["50.0"] * 3 + ["48.3"] * 3
    assert [label.get_text() for label in heat.get_yticklabels()] == list(VERDICTS)


@pytest.mark.parametrize("draw", [plots.scatter, plots.curves, plots.heatmap])
def test_a_name_is_plain_text_in_a_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draw: Callable[[Comparison, Path], None]
) -> None:
    figures, save = [], plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: (figures.append(figure), save(figure, path)))
    path = tmp_path / "x.svg"
    draw(compare([source(HOSTILE, like="agft"), source("_hidden $", like="clip")], MINI), path)
    shown = [text.get_text() for text in figures[0].findobj(Text)]
    assert any(r"\$x\$" in text for text in shown) and any(r"_hidden \$" in text for text in shown)
    assert not any(is_math_text(text) for text in shown)
    ElementTree.fromstring(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["agtf"], "unknown result 'agtf'"),
        (names("--format", "tabel")[1:], "unknown format 'tabel'. Did you mean table?"),
        (names("--heatmap", "x.jpg")[1:], "--heatmap must end in .png or .svg, got x.jpg"),
        (names("--curves", "nowhere/x.png")[1:], "--curves nowhere/x.png: the folder nowhere does not exist"),
        (names("--eps", "8")[1:], "eps 8 is larger than 1"),
        (
            names("--attack", "pgd-20")[1:],
            "do not have records of pgd-20 at Linf 5/255. Records that all models have: autoattack at Linf 2.5/255",
        ),
        ([], "Missing argument"),
    ],
)
def test_invalid_options_print_a_message_and_exit_with_2(
    runs: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert run_command(["compare", *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_latex_has_models_as_rows_and_one_table(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(names("--format", "latex")) == 0
    table = capsys.readouterr().out
    assert table.count(r"\begin{table}") == 1 and r"\label{tab:mini-autoattack-5-255}" in table
    header = next(line for line in table.splitlines() if line.startswith("model"))
    assert header == " & ".join(["model", "clean", "robust", *DATASETS]) + r" \\"
    rows = [line for line in table.splitlines() if line.split(" &")[0] in VERDICTS]
    assert [row.split(" &")[0] for row in rows] == list(VERDICTS) and all("--" in row for row in rows)
    assert run_command(names("--format", "latex", "--no-intervals")) == 0
    assert "--" not in capsys.readouterr().out
    assert run_command(names("--no-intervals")) == 2
