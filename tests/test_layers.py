"""The layers: a module imports only lower layers and its own folder, and nothing branches on a name."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from robustbench_vlm.defenses import DEFENSES
from robustbench_vlm.test_time import TEST_TIME_DEFENSES
from robustbench_vlm.tracks import TRACKS

PACKAGE = Path(__file__).parents[1] / "robustbench_vlm"
LAYERS = (
    ("core",),
    ("models", "datasets", "attacks"),
    ("defenses", "test_time"),
    ("tracks", "protocols"),
    ("training", "engine"),
    ("analysis",),
    ("comparison",),
    ("leaderboard",),
    ("api",),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def part_of(module: str) -> str:
    """Return the folder or module that stands directly in the package."""
    return module.removeprefix("robustbench_vlm").removeprefix(".").partition(".")[0]


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path"
            # `from robustbench_vlm import contracts` names a part, `from robustbench_vlm.x import y` is in one.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(tree: ast.AST) -> set[str]:
    parts = {part_of(name) for name in imported(tree) if name.partition(".")[0] == "robustbench_vlm"}
    return parts - {"__version__"}


def breaches(module: str, source: str) -> list[str]:
    part = module.removesuffix(".py").partition("/")[0]
    allowed = {other for other in LEVEL if LEVEL[other] < LEVEL[part]} | {part}
    return sorted(own(ast.parse(source)) - allowed)


@pytest.mark.parametrize("module", [module for module in MODULES if module != "__init__.py"])
def test_a_module_imports_only_lower_layers_and_its_own_folder(module: str) -> None:
    assert breaches(module, (PACKAGE / module).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("attacks/pgd.py", "from robustbench_vlm.models.classifier import Model", ["models"]),
        ("core/records.py", "def f():\n    from robustbench_vlm import tracks", ["tracks"]),
        ("engine/run.py", "import robustbench_vlm.cli.main\nfrom robustbench_vlm.engine.resolve import Plan", ["cli"]),
        ("cli/main.py", "from robustbench_vlm import __version__\nfrom robustbench_vlm.engine import run", []),
    ],
)
def test_a_breach_is_seen(module: str, source: str, found: list[str]) -> None:
    assert breaches(module, source) == found


@pytest.mark.parametrize("module", MODULES)
def test_nothing_branches_on_the_name_of_a_track_or_a_defense(module: str) -> None:
    names = {*TRACKS.table, *DEFENSES.table, *TEST_TIME_DEFENSES.table}
    compared = {
        constant.value
        for node in ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare | ast.match_case)
        for constant in ast.walk(node if isinstance(node, ast.Compare) else node.pattern)
        if isinstance(constant, ast.Constant) and isinstance(constant.value, str)
    }
    assert not compared & names
