"""Print Markdown tables of the model zoo from leaderboard entries, or from the documents of `vlmbench run --json`.

python benchmarks/zoo_table.py leaderboards/mini/*.json
vlmbench run --model clip --model agft --attack pgd-20 --attack autoattack --eps 5/255 --json > zoo.json
python benchmarks/zoo_table.py zoo.json
"""

import argparse
import json
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

from robustbench_vlm.core import numbers
from robustbench_vlm.core.records import Accuracy, estimate_text
from robustbench_vlm.core.threat import parse_eps
from robustbench_vlm.tracks import TRACKS

Table = dict[str, Any]
MARK = "†"
"""Mark of an estimated number."""


def tables_of(paths: Iterable[Path]) -> list[Table]:
    """Return the tables of all documents: one for each model, attack and eps."""
    documents = [json.loads(path.read_text()) for path in paths]
    return [table for document in documents for table in _tables(document)]


def _tables(document: dict[str, Any]) -> list[Table]:
    if "cells" not in document:
        tables: list[Table] = document.get("runs", [document])
        return tables
    seen = TRACKS.load(document["track"]).training_datasets
    estimates = {(each["attack"], Fraction(each["threat"]["eps"])): each for each in document.get("estimates", ())}
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in document["cells"]:
        if cell["dataset"] not in seen:
            score = {"dataset": cell["dataset"], **cell["score"], "estimate": cell.get("estimate")}
            groups.setdefault((cell["attack"], score["eps"]), []).append(score)
    return [
        _with_estimate(
            {"model": document["model"], "attack": attack, "eps": eps, "scores": scores, "mean": _mean(scores)},
            estimates.get((attack, parse_eps(eps))),
        )
        for (attack, eps), scores in groups.items()
    ]


def _with_estimate(table: Table, estimate: dict[str, Any] | None) -> Table:
    """Return a table with the estimated mean of a leaderboard entry. Without an estimate, return it unchanged."""
    if estimate is None:
        return table
    mean = {name: estimate[name] for name in ("robust", "robust_interval")}
    return {**table, "mean": table["mean"] | mean, "estimate": estimate["estimate"]}


def _mean(scores: list[dict[str, Any]]) -> dict[str, Any]:
    counts, found = [score["n"] for score in scores], {}
    for name in ("clean", "robust"):
        shares = [score[name] for score in scores]
        mean = Accuracy.mean([Accuracy(share, share, share, n) for share, n in zip(shares, counts, strict=True)])
        found |= {name: mean.value, f"{name}_interval": (mean.low, mean.high)}
    return found


def percent(share: float, interval: tuple[float, float] | None = None) -> str:
    """Return a share in %, with its interval if one is given."""
    if interval is None:
        return numbers.percent(share)
    return f"{numbers.percent(share)} ({numbers.percent_interval(*interval)})"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def means(tables: list[Table]) -> str:
    """Return a table of mean robust accuracy with a row for each model and a column for each attack and eps."""
    columns = list(dict.fromkeys((table["attack"], table["eps"]) for table in tables))
    columns.sort(key=lambda column: (column[0], parse_eps(column[1])))
    found = {(table["model"], table["attack"], table["eps"]): table for table in tables}
    rows = []
    for model in dict.fromkeys(table["model"] for table in tables):
        some = next(table for table in tables if table["model"] == model)
        row = [model, percent(some["mean"]["clean"], some["mean"]["clean_interval"])]
        for attack, eps in columns:
            table = found.get((model, attack, eps))
            row.append(_robust_mean(table) if table else "")
        rows.append(row)
    return markdown(["model", "clean", *(f"{attack} {eps}" for attack, eps in columns)], rows)


def _robust_mean(table: Table) -> str:
    """Return the mean robust accuracy with its interval. An estimate is marked and also has its design interval."""
    shown = percent(table["mean"]["robust"], table["mean"]["robust_interval"])
    if not (estimate := table.get("estimate")):
        return shown
    full = estimate.get("full_attack") or estimate["mean"]
    return f"{shown} {MARK} full attack {numbers.percent_interval(*full)}"


def estimates(tables: list[Table]) -> str:
    """Return a line for each estimated mean: the counts of its draws and the saved passes."""
    lines = []
    for table in tables:
        if each := table.get("estimate"):
            saved = each["passes_full"] / each.get("passes", table.get("passes", each["passes_full"]))
            text = estimate_text(each["drawn"], each["survivors"], saved)
            lines.append(f"* {table['model']}, {table['attack']} {table['eps']}, estimated: {text}")
    return "\n".join(lines)


def data_sets(tables: list[Table], attack: str, eps: str) -> str:
    """Return a table of clean / robust accuracy with a row for each dataset and a column for each model."""
    chosen = [table for table in tables if (table["attack"], table["eps"]) == (attack, eps)]
    rows = []
    for number, score in enumerate(chosen[0]["scores"]):
        cells = [table["scores"][number] for table in chosen]
        assert {cell["dataset"] for cell in cells} == {score["dataset"]}
        rows.append([score["dataset"], *map(_clean_and_robust, cells)])
    return markdown(["dataset", *(table["model"] for table in chosen)], rows)


def _clean_and_robust(score: dict[str, Any]) -> str:
    mark = f" {MARK}" if score.get("estimate") else ""
    return f"{percent(score['clean'])} / {percent(score['robust'])}{mark}"


def main() -> None:
    """Read the command line and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", nargs="+", type=Path)
    parser.add_argument("--attack", default="autoattack")
    parser.add_argument("--eps", default="5/255")
    options = parser.parse_args()
    tables = tables_of(options.documents)
    print(*filter(None, (means(tables), estimates(tables), data_sets(tables, options.attack, options.eps))), sep="\n\n")


if __name__ == "__main__":
    main()
