"""The tables of docs/warnings.md and docs/protocols.md, from the code: `python benchmarks/docs_tables.py` writes them.

A test fails where they differ.
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
    return markdown(["code", "means", "what to do"], rows)


def protocols() -> str:
    """Return a section for every protocol: what it is, and its identity as `vlmbench show protocol` prints it."""
    return "\n\n".join(_section(name) for name in PROTOCOLS.table)


def _section(name: str) -> str:
    protocol: Protocol = PROTOCOLS.load(name)
    document = protocol_document(name)
    tracks = [track for track in TRACKS.table if name in TRACKS.load(track).protocols]
    is_first = any(TRACKS.load(track).protocols[0] == name for track in tracks)
    description = protocol.description[0].upper() + protocol.description[1:]
    stages = f"{protocol.attack_name('autoattack')}" if protocol.attacks else "the standard list"
    rows = [
        ["track", ", ".join(tracks) + (", where it is the default" if is_first else "")],
        ["samples per dataset", str(protocol.samples or "all")],
        ["precision of the attack, of the verdicts", f"{protocol.precision}, {protocol.verdict_precision}"],
        ["iterate of PGD that counts", protocol.iterate],
        ["`autoattack` is", stages],
        ["images", str(document["transform"])],
        ["small images", str(document["small_transform"])],
        ["fingerprint", f"`{str(document['fingerprint'])[:12]}`"],
    ]
    return f"## {protocol.label}\n\n{description}.\n\n{markdown(['', ''], rows)}"


TABLES = {"warnings.md": warnings, "protocols.md": protocols}


def filled(page: str, text: str) -> str:
    """Return a page's text with its table made anew."""
    return _TABLE.sub(lambda old: TABLES[page](), text)


if __name__ == "__main__":
    for page in TABLES:
        path = DOCS / page
        path.write_text(filled(page, path.read_text(encoding="utf-8")), encoding="utf-8")
