"""Draw docs/images/leaderboard.svg, the figure of README.md, from the entries in leaderboards/mini.

`python benchmarks/leaderboard_figure.py` writes the file. A test fails if it differs from the entries.
"""

from pathlib import Path

from robustbench_vlm.core.records import Accuracy
from robustbench_vlm.leaderboard.board import Board, BoardRow
from robustbench_vlm.leaderboard.ranking import make_board

ROOT = Path(__file__).parents[1]
FIGURE = ROOT / "docs" / "images" / "leaderboard.svg"
_LEFT, _RIGHT, _WIDTH, _TOP, _ROW = 150, 690, 720, 74, 36
"""Left and right end of the axis, width of the figure, top of the first row, and height of a row, in pixels."""
_STYLE = """
  text { font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328; }
  .title { font-weight: 600; font-size: 14px; }
  .small { font-size: 12px; fill: #59636e; }
  .panel { fill: #ffffff; stroke: #d1d9e0; }
  .grid { stroke: #d1d9e0; }
  .between { stroke: #b6bfc8; stroke-width: 2; }
  .robust { fill: #0b6e74; stroke: #0b6e74; stroke-width: 2; }
  .clean { fill: #ffffff; stroke: #a04e00; stroke-width: 2; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; }
    .small { fill: #9198a1; }
    .panel { fill: #0d1117; stroke: #3d444d; }
    .grid { stroke: #3d444d; }
    .between { stroke: #59636e; }
    .robust { fill: #4dd0d6; stroke: #4dd0d6; }
    .clean { fill: #0d1117; stroke: #ffa657; }
  }
"""


def drawn(board: Board) -> str:
    """Return the SVG: a row for each model with its robust and its clean accuracy and their 95 % intervals."""
    bottom = _TOP + _ROW * len(board.rows)
    height = bottom + 48
    summary = "; ".join(f"{row.model} {100 * row.robust.value:.1f}" for row in board.rows)
    title = (
        f"Leaderboard of the track {board.track}: mean accuracy in %, {len(board.datasets)} datasets, 95 % intervals"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" width="{_WIDTH}">',
        f"<title>Robust accuracy in %: {summary}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="panel" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1}" rx="6"/>',
        f'<text class="title" x="16" y="26">{title}</text>',
        f'<circle class="robust" cx="22" cy="46" r="5"/><text class="small" x="34" y="50">robust, {board.attack},'
        f" {board.norm} {board.eps}</text>",
        '<circle class="clean" cx="252" cy="46" r="5"/><text class="small" x="264" y="50">clean</text>',
    ]
    for tick in range(0, 101, 20):
        x = _across(tick / 100)
        parts.append(f'<line class="grid" x1="{x}" y1="{_TOP - 8}" x2="{x}" y2="{bottom}"/>')
        parts.append(f'<text class="small" x="{x}" y="{bottom + 18}" text-anchor="middle">{tick}</text>')
    for number, row in enumerate(board.rows):
        parts += _row(row, _TOP + _ROW * number + 10)
    parts.append(f'<text class="small" x="16" y="{height - 12}">protocol {board.protocol["label"]}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _row(row: BoardRow, y: int) -> list[str]:
    robust, clean = row.robust, row.clean
    return [
        f'<text x="16" y="{y + 4}">{row.rank or "-"}</text><text x="54" y="{y + 4}">{row.model}</text>',
        f'<line class="between" x1="{_across(robust.value)}" y1="{y}" x2="{_across(clean.value)}" y2="{y}"/>',
        *(_point(kind, accuracy, y) for kind, accuracy in (("robust", robust), ("clean", clean))),
        f'<text class="small" x="{_across(robust.value)}" y="{y + 18}" text-anchor="middle">{_percent(robust)}</text>',
        f'<text class="small" x="{_across(clean.value)}" y="{y + 18}" text-anchor="middle">{_percent(clean)}</text>',
    ]


def _point(kind: str, accuracy: Accuracy, y: int) -> str:
    low, high, x = (_across(share) for share in (accuracy.low, accuracy.high, accuracy.value))
    interval = f'<line class="{kind}" x1="{low}" y1="{y}" x2="{high}" y2="{y}"/>'
    return f'{interval}<circle class="{kind}" cx="{x}" cy="{y}" r="5"/>'


def _percent(accuracy: Accuracy) -> str:
    return f"{100 * accuracy.value:.1f}"


def _across(share: float) -> float:
    return round(_LEFT + share * (_RIGHT - _LEFT), 1)


if __name__ == "__main__":
    FIGURE.write_text(drawn(make_board("mini", ROOT / "leaderboards" / "mini")), encoding="utf-8")
