"""Generate the tables of the pages in `TABLES` from the code and from reports of the benchmarks.

`python benchmarks/docs_tables.py` writes the pages. tests/docs/test_pages.py fails if a page differs from the code.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import autopsy
import masking
import open_clip_architectures
import procedures
import random_defenses
import stronger_stages

from robustbench_vlm.analysis.procedures import PROCEDURES
from robustbench_vlm.cli.render.protocols import protocol_document
from robustbench_vlm.core.numbers import percent
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.engine.warnings import WARNINGS
from robustbench_vlm.models.open_clip import load_architecture
from robustbench_vlm.protocols import IMAGE_PROTOCOL, PROTOCOLS
from robustbench_vlm.protocols.base import SMALL_INPUT, Protocol
from robustbench_vlm.tracks import TRACKS

DOCS = Path(__file__).parents[1] / "docs"


def read_report(file: str) -> dict[str, Any]:
    """Return the report of a benchmark in this folder."""
    found: dict[str, Any] = json.loads((Path(__file__).parent / file).read_text(encoding="utf-8"))
    return found


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def warnings() -> str:
    """Return the table of warnings."""
    rows = [[f"`{warning.code}`", warning.meaning, warning.advice] for warning in WARNINGS.values()]
    return markdown(["code", "meaning", "advice"], rows)


def protocols() -> str:
    """Return a section for each protocol: its description and a table of its settings."""
    return "\n\n".join(_section(name) for name in PROTOCOLS.table)


def _section(name: str) -> str:
    protocol: Protocol = PROTOCOLS.load(name)
    document = protocol_document(name)
    tracks = [track for track in TRACKS.table if name in TRACKS.load(track).protocols]
    is_first = any(TRACKS.load(track).protocols[0] == name for track in tracks)
    track = ", ".join(tracks) + (" (default protocol)" if is_first else "")
    if name == IMAGE_PROTOCOL:
        track = "none: the default protocol of `--images` without `--track`"
    description = protocol.description[0].upper() + protocol.description[1:]
    stages = f"`{protocol.attack_name('autoattack')}`" if protocol.attacks else "the standard AutoAttack"
    rows = [
        ["track", track],
        ["samples per dataset", str(protocol.samples or "all")],
        ["precision of the attack", protocol.precision],
        ["precision of the verdicts", protocol.verdict_precision],
        ["iterates of PGD that are classified", "all" if protocol.iterate == "best" else "only the last"],
        ["attack run as `autoattack`", stages],
    ]
    if protocol.eps:
        rows += [
            ["radii (Linf)", ", ".join(protocol.eps)],
            [f"radii of models with an input of less than {SMALL_INPUT} pixels", ", ".join(protocol.small_eps)],
        ]
    if protocol.transform is not None:
        rows += [
            ["resize", str(document["transform"])],
            ["resolution", str(document["resolution"])],
            ["resize of CIFAR and STL10", str(document["small_transform"])],
        ]
    rows.append(["fingerprint", f"`{str(document['fingerprint'])[:12]}`"])
    return f"## {protocol.label}\n\n{description}.\n\n{markdown(['setting', 'value'], rows)}"


_ARCHITECTURES = (
    "mini",
    "open_clip:ViT-B-32-quickgelu",
    "open_clip:ViT-B-16-SigLIP",
    "open_clip:convnext_base_w",
    "open_clip:ViT-B-32-256",
    "open_clip:ViT-L-14-336-quickgelu",
    "open_clip:ViT-B-16-SigLIP-384",
)
_PROTOCOLS = ("trusted", "trusted-native", "fare-2024")


def image_sizes() -> str:
    """Return the table of the sizes at which models are attacked, by input size."""
    by_size: dict[int, list[str]] = {}
    for name in _ARCHITECTURES:
        by_size.setdefault(load_architecture(name).image_size, []).append(f"`{name.removeprefix('open_clip:')}`")
    rows = [
        [str(size), ", ".join(names), *(_attacked_at(protocol, size) for protocol in _PROTOCOLS), str(size)]
        for size, names in by_size.items()
    ]
    return markdown(["input size", "for example", *(f"`{name}`" for name in _PROTOCOLS), "`--images`"], rows)


def _attacked_at(protocol: str, size: int) -> str:
    transform = PROTOCOLS.load(protocol).adapt_dataset(DATASETS.load("dtd"), size).transform
    return str(transform.crop)


def estimated_runs() -> str:
    """Return the table of replayed estimated runs, from benchmarks/estimated_runs.json."""
    report = read_report("estimated_runs.json")
    header = ["model, eps, or made-up survivors", "half-width", "survivors", "broken later", "drawn", "passes saved"]
    other = {(row["population"], row["half_width"]): row["coverage"] for row in report["new_samples"]["rows"]}
    rows = [
        [
            row["population"],
            f"{row['half_width'] * 100:g}",
            str(row["survivors"]),
            str(row["breaks"]),
            f"{row['drawn']:.0f}",
            f"{row['passes_saved']:.1f} times" if "passes_saved" in row else "",
            f"{percent(row['coverage'])} %",
            f"{percent(other[key])} %" if (key := (row["population"], row["half_width"])) in other else "",
        ]
        for row in report["replayed"]["rows"]
    ]
    return markdown([*header, "coverage, full attack", "coverage, other samples"], rows)


def planning() -> str:
    """Return the table of predicted and actual passes and times, from benchmarks/planning.json."""
    report = read_report("planning.json")
    header = ["quantity", "attack", "results", "in the range", "result divided by prediction: median", "range"]
    rows = []
    for kind, unit in (("passes", "passes of a full run on mini"), ("times", "time of a pass")):
        found = report[kind]["rows"]
        for attack in sorted({row["attack"] for row in found}):
            own = [row for row in found if row["attack"] == attack]
            ratios = [row["ratio"] for row in own]
            inside = sum(row["inside"] for row in own)
            ends = f"{min(ratios):.2f} to {max(ratios):.2f}"
            rows.append([unit, f"`{attack}`", str(len(own)), str(inside), f"{median(ratios):.2f}", ends])
    return markdown(header, rows)


def autoattack() -> str:
    """Return the tables of processor times of our AutoAttack and the official one, from benchmarks/autoattack.json."""
    report = read_report("autoattack.json")
    header = ["eps", "images", "official code", "this package", "speedup", "speedup of each part", "largest speedup"]
    stages = ["eps", "stage", "official code", "in the network", "this package", "in the network", "speedup"]
    rows, stage_rows = [], []
    for found in report["comparisons"]:
        parts = ", ".join(f"{each:.1f}" for each in found["speedup_of_parts"])
        times = [f"{found[code]['seconds']:.1f} s" for code in ("official", "ours")]
        ends = [f"{found['speedup']:.1f}", parts, f"{found['largest_speedup']:.1f}"]
        rows.append([found["eps"], str(found["images"]), *times, *ends])
        for stage, own in found["stages"].items():
            spent = [own[code] for code in ("official", "ours")]
            cells = [text for each in spent for text in (f"{each['seconds']:.1f} s", _share_of_network(each))]
            speedup = spent[0]["seconds"] / spent[1]["seconds"]
            stage_rows.append([found["eps"], f"`{stage}`", *cells, f"{speedup:.1f}"])
    return f"{markdown(header, rows)}\n\n{markdown(stages, stage_rows)}"


def _share_of_network(times: dict[str, float]) -> str:
    return f"{100 * times['network'] / times['seconds']:.0f} %"


def verification() -> str:
    """Return the table of detected forgeries, from benchmarks/verification.json."""
    report = read_report("verification.json")["replayed"]
    header = ["model", "forgery", "forged samples", "gain in points", "left", "found", "passes", "before"]
    rows = []
    for row in report["rows"]:
        cost = report["cost"][row["model"]]
        found = "100 %" if row["found"] == 1 else f"{percent(row['found'])} %"
        passes = [f"{cost[key] / 1000:,.0f} k" for key in ("passes", "passes_before")]
        gain = f"{100 * row['samples'] / cost['samples']:.1f}"
        left = f"{100 * row['left'] / cost['samples']:.1f}" if "left" in row else "-"
        gain = gain if "left" in row else f"-{gain}"
        rows.append([row["model"], row["forgery"], str(row["samples"]), gain, left, found, *passes])
    return markdown(header, rows)


def published_evaluations() -> str:
    """Return the table of results of benchmarks/procedures.json, and the list of published evaluations."""
    report = read_report("procedures.json")
    return f"{markdown(*procedures.table(report))}\n\n## Published evaluations\n\n{_evaluations()}"


def _evaluations() -> str:
    """Return the table of the published evaluations. Defenses with the same evaluation share a row."""
    names: dict[str, list[str]] = {}
    for name, procedure in PROCEDURES.items():
        names.setdefault(procedure.summary, []).append(f"`{name}`")
    rows = []
    for summary, own in names.items():
        procedure = PROCEDURES[own[0].strip("`")]
        unconfirmed = "; ".join(procedure.unconfirmed) or "nothing"
        rows.append([", ".join(own), summary, procedure.source, unconfirmed])
    return markdown(["defense", "evaluation", "source", "not repeated or not confirmed"], rows)


def lines_of(table: Callable[[Mapping[str, Any]], Iterable[str]], file: str) -> Callable[[], str]:
    """Return a function that returns the lines of a table from a report in this folder."""
    return lambda: "\n".join(table(read_report(file)))


TABLES: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "adaptive_evaluation.md": {
        "random": lines_of(random_defenses.table, "random_defenses.json"),
        "reference": lines_of(stronger_stages.reference_table, "stronger_stages.json"),
        "models": lines_of(stronger_stages.table, "stronger_stages.json"),
        "masked": lines_of(masking.table, "masking.json"),
        "autopsy": lines_of(autopsy.table, "autopsy.json"),
        "autopsies": lines_of(autopsy.defenses_table, "autopsy_defenses.json"),
    },
    "architectures.md": {"table": open_clip_architectures.tables},
    "estimated_runs.md": {"table": estimated_runs},
    "models.md": {"table": image_sizes},
    "procedures.md": {"table": published_evaluations},
    "scale.md": {"table": planning},
    "speed.md": {"table": autoattack},
    "submit.md": {"table": verification},
    "warnings.md": {"table": warnings},
    "protocols.md": {"table": protocols},
}
"""For each page the functions that make its tables. A table is between the comments `NAME` and `end of NAME`."""


def filled(page: str, text: str) -> str:
    """Return the text of a page with its tables generated again."""
    for name, table in TABLES[page].items():
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(start)
        text = f"{before}{start}{table()}\n{end}{rest.partition(end)[2]}"
    return text


if __name__ == "__main__":
    for page in TABLES:
        path = DOCS / page
        path.write_text(filled(page, path.read_text(encoding="utf-8")), encoding="utf-8")
