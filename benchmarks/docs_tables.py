"""Generate the tables of docs/warnings.md and docs/protocols.md from the code.

`python benchmarks/docs_tables.py` writes both pages. tests/docs/test_pages.py fails if a page differs from the code.
"""

import re
from pathlib import Path

from robustbench_vlm.cli.render.protocols import protocol_document
from robustbench_vlm.engine.warnings import WARNINGS
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.protocols.base import Protocol
from robustbench_vlm.tracks import TRACKS

DOCS = Path(__file__).parents[1] / "docs"
_TABLE = re.compile(r"(?<=<!-- table -->\n).*?(?=\n<!-- end of table -->)", re.DOTALL)


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
    description = protocol.description[0].upper() + protocol.description[1:]
    stages = f"`{protocol.attack_name('autoattack')}`" if protocol.attacks else "the standard AutoAttack"
    rows = [
        ["track", ", ".join(tracks) + (" (default protocol)" if is_first else "")],
        ["samples per dataset", str(protocol.samples or "all")],
        ["precision of the attack", protocol.precision],
        ["precision of the verdicts", protocol.verdict_precision],
        ["iterates of PGD that are classified", "all" if protocol.iterate == "best" else "only the last"],
        ["attack run as `autoattack`", stages],
    ]
    if protocol.transform is not None:
        rows += [
            ["resize", str(document["transform"])],
            ["resize of CIFAR and STL10", str(document["small_transform"])],
        ]
    rows.append(["fingerprint", f"`{str(document['fingerprint'])[:12]}`"])
    return f"## {protocol.label}\n\n{description}.\n\n{markdown(['setting', 'value'], rows)}"


TABLES = {"warnings.md": warnings, "protocols.md": protocols}


def filled(page: str, text: str) -> str:
    """Return the text of a page with its table generated again."""
    return _TABLE.sub(lambda old: TABLES[page](), text)


if __name__ == "__main__":
    for page in TABLES:
        path = DOCS / page
        path.write_text(filled(page, path.read_text(encoding="utf-8")), encoding="utf-8")
