"""The layout: layers, no import circle, one stem per file, and no branch on a name."""

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


def dotted(module: str) -> str:
    """Return the import path of a module's file: "core/files.py" is robustbench_vlm.core.files."""
    path = module.removesuffix(".py").removesuffix("__init__").rstrip("/").replace("/", ".")
    return f"robustbench_vlm.{path}".rstrip(".")


def at_import(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that importing a module runs; what stands under TYPE_CHECKING is not run."""
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
    """Return, for the sources of modules by import path, the modules of the package that each imports on import."""
    graph: dict[str, set[str]] = {}
    for name, source in sources.items():
        body = [each for each in at_import(ast.parse(source).body) if isinstance(each, ast.Import | ast.ImportFrom)]
        found = {path if path in sources else path.rpartition(".")[0] for each in body for path in imported(each)}
        graph[name] = (found & set(sources)) - {name}
    return graph


def test_no_import_circle() -> None:
    sources = {dotted(module): (PACKAGE / module).read_text(encoding="utf-8") for module in MODULES}
    graph = import_graph(sources)
    assert sum(map(len, graph.values())) > 500, "the imports are found"
    tuple(graphlib.TopologicalSorter(graph).static_order())


def test_an_import_circle_is_seen() -> None:
    checked = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from robustbench_vlm.a import x\n"
    sources = {"robustbench_vlm.a": "from robustbench_vlm.b import y\n", "robustbench_vlm.b": checked}
    tuple(graphlib.TopologicalSorter(import_graph(sources)).static_order())
    sources["robustbench_vlm.b"] = "from robustbench_vlm import a\n"
    with pytest.raises(graphlib.CycleError):
        tuple(graphlib.TopologicalSorter(import_graph(sources)).static_order())


# Files that play one role in several folders.
ROLES = {
    "__init__": "the registry or the front of a folder",
    "base": "the types that the files of a folder share",
    "request": "the request of a user: of a run, or of a training",
    "mini": "the embedded track",
    "agft": "a paper: its defense, and the prompts of its code",
    "fare": "a paper: its defense, and the prompts of its code",
    "tecoa": "a paper: its defense, and the prompts of its code",
}


def test_no_two_files_share_a_stem() -> None:
    commands = {module for module in MODULES if module.startswith("cli/") and module.count("/") == 1}
    places: dict[str, list[str]] = defaultdict(list)
    for module in MODULES:
        # A command has the name of the function that it calls.
        if module not in commands:
            places[Path(module).stem].append(module)
    assert {stem: found for stem, found in places.items() if len(found) > 1 and stem not in ROLES} == {}


CONTRIBUTING = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
WHERE = {
    question: re.findall(r"`([^`]+)`", answer)
    for question, answer in re.findall(r"^\| (.+?) \| (`.*`) \|$", CONTRIBUTING, re.MULTILINE)
}
# Names that make the answer of a question true, by the question.
NAMES_IN = {
    "the loop of APGD": "def step",
    "the attacks that AutoAttack consists of": "fab-t",
    "the decision that a sample is robust": "def attack_samples",
    "the Linf and L2 balls and their projections": "def project",
    "how CLIP becomes a classifier": "class ZeroShotClassifier",
    "the file format of a model card": "class ModelCard",
    "the loss of AGFT": "def loss",
    "the prompt of StanfordCars": "stanford-cars",
    "how CIFAR-10 is read from disk": "def cifar",
    "the datasets and radii of a track": "class Track",
    "the settings of `trusted`": "TRUSTED",
    "writing records and resuming a run": "def write_shard",
    "the conditions of a warning": "zero-gradient",
    "the number of passes that an attack costs": "passes_expected",
    "the definition of a fingerprint": "def fingerprint",
    "the training loop": "def finetune",
    "McNemar and Holm": "def mcnemar",
    "the LaTeX export": "def latex",
    "the rank on a leaderboard": "rank",
    "what `verify` computes again": "def verify",
    "the command `vlmbench run`": "def run",
    "the options that commands share": "--batch-size",
    "the text of tables in the terminal": "def table",
}


@pytest.mark.parametrize("question", WHERE)
def test_where_a_thing_is(question: str) -> None:
    files = [PACKAGE / path for path in WHERE[question]]
    assert all(path.exists() for path in files)
    if question in NAMES_IN:
        assert any(NAMES_IN[question] in path.read_text(encoding="utf-8") for path in files)


def test_every_question_is_in_the_table_and_the_layers_are_those_of_the_test() -> None:
    assert set(NAMES_IN) <= set(WHERE) and len(WHERE) > 25
    assert "def holm" in (PACKAGE / "comparison" / "statistics.py").read_text(encoding="utf-8")
    written = re.findall(r"^\d+\. (`.*`)$", CONTRIBUTING, re.MULTILINE)
    assert [tuple(re.findall(r"`(\w+)`", line)) for line in written] == list(LAYERS[:-1])
