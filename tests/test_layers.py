"""Structure of the package: layers, import cycles, file names, and no branches on names of tracks or defenses."""

import ast
import graphlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
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
    """Return the folder or module directly under the package."""
    return module.removeprefix("robustbench_vlm").removeprefix(".").partition(".")[0]


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports must be absolute"
            # `from robustbench_vlm import x` imports a module; `from robustbench_vlm.x import y` may import a value.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package_imports(tree: ast.AST) -> set[str]:
    parts = {part_of(name) for name in imported(tree) if name.partition(".")[0] == "robustbench_vlm"}
    return parts - {"__version__"}


def forbidden_imports(module: str, source: str) -> list[str]:
    part = module.removesuffix(".py").partition("/")[0]
    allowed = {other for other in LEVEL if LEVEL[other] < LEVEL[part]} | {part}
    return sorted(package_imports(ast.parse(source)) - allowed)


@pytest.mark.parametrize("module", [module for module in MODULES if module != "__init__.py"])
def test_modules_import_only_their_own_folder_and_lower_layers(module: str) -> None:
    assert forbidden_imports(module, (PACKAGE / module).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("attacks/pgd.py", "from robustbench_vlm.models.classifier import Model", ["models"]),
        ("core/records.py", "def f():\n    from robustbench_vlm import tracks", ["tracks"]),
        ("engine/run.py", "import robustbench_vlm.cli.main\nfrom robustbench_vlm.engine.resolve import Plan", ["cli"]),
        ("cli/main.py", "from robustbench_vlm import __version__\nfrom robustbench_vlm.engine import run", []),
    ],
)
def test_forbidden_imports_are_found(module: str, source: str, found: list[str]) -> None:
    assert forbidden_imports(module, source) == found


@pytest.mark.parametrize("module", MODULES)
def test_code_does_not_branch_on_names_of_tracks_and_defenses(module: str) -> None:
    names = {*TRACKS.table, *DEFENSES.table, *TEST_TIME_DEFENSES.table}
    compared = {
        constant.value
        for node in ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare | ast.match_case)
        for constant in ast.walk(node if isinstance(node, ast.Compare) else node.pattern)
        if isinstance(constant, ast.Constant) and isinstance(constant.value, str)
    }
    assert not compared & names


def dotted(module: str) -> str:
    """Return the import path of a module's file: "core/files.py" is robustbench_vlm.core.files."""
    path = module.removesuffix(".py").removesuffix("__init__").rstrip("/").replace("/", ".")
    return f"robustbench_vlm.{path}".rstrip(".")


def at_import(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that run when a module is imported, without those under TYPE_CHECKING."""
    for statement in body:
        if isinstance(statement, ast.If):
            if "TYPE_CHECKING" not in ast.unparse(statement.test):
                yield from at_import(statement.body)
            yield from at_import(statement.orelse)
        elif isinstance(statement, ast.Try | ast.With):
            yield from at_import(statement.body)
        else:
            yield statement


def import_graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Return the modules of the package that each module imports at import time; keys are import paths."""
    graph: dict[str, set[str]] = {}
    for name, source in sources.items():
        body = [each for each in at_import(ast.parse(source).body) if isinstance(each, ast.Import | ast.ImportFrom)]
        found = {path if path in sources else path.rpartition(".")[0] for each in body for path in imported(each)}
        graph[name] = (found & set(sources)) - {name}
    return graph


def test_there_are_no_import_cycles() -> None:
    sources = {dotted(module): (PACKAGE / module).read_text(encoding="utf-8") for module in MODULES}
    graph = import_graph(sources)
    assert sum(map(len, graph.values())) > 500, "too few imports were found"
    tuple(graphlib.TopologicalSorter(graph).static_order())


def test_import_cycles_are_found() -> None:
    checked = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from robustbench_vlm.a import x\n"
    sources = {"robustbench_vlm.a": "from robustbench_vlm.b import y\n", "robustbench_vlm.b": checked}
    tuple(graphlib.TopologicalSorter(import_graph(sources)).static_order())
    sources["robustbench_vlm.b"] = "from robustbench_vlm import a\n"
    with pytest.raises(graphlib.CycleError):
        tuple(graphlib.TopologicalSorter(import_graph(sources)).static_order())


# File names that several folders use for files of the same kind.
ROLES = {
    "__init__": "the registry or the public names of a folder",
    "base": "types that are shared in a folder",
    "request": "the request for a run or a training",
    "mini": "the embedded track",
    "agft": "the defense of a paper, and the prompts of its code",
    "fare": "the defense of a paper, and the prompts of its code",
    "tecoa": "the defense of a paper, and the prompts of its code",
}


def test_file_names_are_unique() -> None:
    commands = {module for module in MODULES if module.startswith("cli/") and module.count("/") == 1}
    places: dict[str, list[str]] = defaultdict(list)
    for module in MODULES:
        # A command has the same file name as the code that it calls.
        if module not in commands:
            places[Path(module).stem].append(module)
    assert {stem: found for stem, found in places.items() if len(found) > 1 and stem not in ROLES} == {}


CONTRIBUTING = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES_OF = {
    subject: re.findall(r"`([^`]+)`", answer)
    for subject, answer in re.findall(r"^\| (.+?) \| (`.*`) \|$", CONTRIBUTING, re.MULTILINE)
}
# A text that the file of each subject must contain.
NAMES_IN = {
    "the loop of APGD": "def step",
    "the attacks that AutoAttack consists of": "fab-t",
    "the decision whether a sample is robust": "def attack_samples",
    "the Linf and L2 balls and their projections": "def project",
    "the zero-shot classifier of a CLIP": "class ZeroShotClassifier",
    "the file format of a model card": "class ModelCard",
    "the loss of AGFT": "def loss",
    "the prompt template of StanfordCars": "stanford-cars",
    "the reader of the CIFAR-10 files": "def cifar",
    "the datasets and radii of a track": "class Track",
    "the settings of the protocol `trusted`": "TRUSTED",
    "writing the records of a run, and resuming a run": "def write_shard",
    "the conditions under which a result gets a warning": "zero-gradient",
    "the number of forward and backward passes of an attack": "passes_expected",
    "the definition of a fingerprint": "def fingerprint",
    "the training loop": "def finetune",
    "the McNemar test and Holm's correction": "def mcnemar",
    "the LaTeX export": "def latex",
    "the rank on a leaderboard": "rank",
    "the checks of `verify`": "def verify",
    "the command `vlmbench run`": "def run",
    "the options that commands share": "--batch-size",
    "the layout of tables in the terminal": "def table",
}


@pytest.mark.parametrize("subject", FILES_OF)
def test_files_of_the_table_exist(subject: str) -> None:
    files = [PACKAGE / path for path in FILES_OF[subject]]
    assert all(path.exists() for path in files)
    if subject in NAMES_IN:
        assert any(NAMES_IN[subject] in path.read_text(encoding="utf-8") for path in files)


def test_contributing_has_every_subject_and_the_layers() -> None:
    assert set(NAMES_IN) <= set(FILES_OF) and len(FILES_OF) > 25
    assert "def holm" in (PACKAGE / "comparison" / "statistics.py").read_text(encoding="utf-8")
    written = re.findall(r"^\d+\. (`.*`)$", CONTRIBUTING, re.MULTILINE)
    assert [tuple(re.findall(r"`(\w+)`", line)) for line in written] == list(LAYERS[:-1])
