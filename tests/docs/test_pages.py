"""The documentation: commands exist, links lead to files, tables and figures agree with the code, the site builds."""

import importlib.util
import itertools
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
import typer

from robustbench_vlm.attacks import ATTACKS
from robustbench_vlm.cli.completion import BY_OPTION
from robustbench_vlm.cli.main import app
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.defenses import DEFENSES
from robustbench_vlm.engine.backends import ENGINES
from robustbench_vlm.engine.warnings import WARNINGS
from robustbench_vlm.leaderboard.ranking import make_board
from robustbench_vlm.models import ARCHITECTURES, MODELS
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.test_time import TEST_TIME_DEFENSES
from robustbench_vlm.tracks import TRACKS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(vlmbench [^`]*)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FOLDERS = sorted(path.name for path in (ROOT / "robustbench_vlm").iterdir() if (path / "__init__.py").is_file())
_PLACES = "|".join(["robustbench_vlm", "tests", "benchmarks", *FOLDERS])
FILE = re.compile(rf"(?<![\w/.-])((?:{_PLACES})/[\w/]+\.py)\b")
DOTTED = re.compile(r"\brobustbench_vlm(?:\.\w+)+")
REGISTRIES = (ARCHITECTURES, ATTACKS, DATASETS, DEFENSES, ENGINES, MODELS, PROTOCOLS, TEST_TIME_DEFENSES, TRACKS)
PROGRAM = typer.main.get_command(app)


def commands_in(text: str) -> Iterator[str]:
    """Yield the command lines of a page: lines of code blocks, and words in single backquotes."""
    for info, block in FENCE.findall(text):
        # A page may show the message of a command that fails.
        for line in [] if "exit code" in info else block.splitlines():
            for part in re.split(r"&&|\||;", line):
                words = part.strip()
                if words.startswith(("vlmbench ", ".venv/bin/vlmbench ")) and not words.startswith("vlmbench: "):
                    yield words.removeprefix(".venv/bin/")
    yield from (words for words in INLINE.findall(FENCE.sub("", text)) if "..." not in words)


def check(words: str) -> None:
    """Raise what the command line's own parser raises for a command or an option that there is not."""
    group: Any = PROGRAM
    arguments = shlex.split(words, comments=True)[1:]
    while arguments and hasattr(group, "commands") and not arguments[0].startswith("-"):
        name = arguments.pop(0)
        # "list|prepare" stands for several commands.
        for each in name.split("|")[:-1]:
            assert each in group.commands, f"{words}: no command {each}"
        name = name.split("|")[-1]
        assert name in group.commands, f"{words}: no command {name}"
        group = group.commands[name]
    context = group.make_context("vlmbench", [], resilient_parsing=True)
    context.resilient_parsing = False
    group.make_parser(context).parse_args(list(arguments))
    for option, value in itertools.pairwise(arguments):
        if option in BY_OPTION and not value.isupper():
            context.params["track"] = arguments[arguments.index("--track") + 1] if "--track" in arguments else "mini"
            is_free = re.search(r"[/.:+]|pgd-\d|^my-", value) is not None
            assert is_free or value in BY_OPTION[option](context, ""), f"{words}: no {option} {value}"


@pytest.mark.parametrize("page", NAMES)
def test_every_command_line_is_one(page: str) -> None:
    for words in commands_in((ROOT / page).read_text(encoding="utf-8")):
        check(words)


@pytest.mark.parametrize(
    "words",
    [
        "vlmbench rum --model agft",
        "vlmbench run --modle agft",
        "vlmbench run --attack autoatack",
        "vlmbench data list|fetch",
        "vlmbench run --model fare-1",
        "vlmbench train agft --num-images",
    ],
)
def test_a_wrong_command_line_is_seen(words: str) -> None:
    with pytest.raises((AssertionError, typer.TyperException)):
        check(words)


def test_command_lines_are_found_in_blocks_and_in_sentences() -> None:
    text = "`vlmbench doctor` and\n\n```\nvlmbench run --model a   # b\nx && .venv/bin/vlmbench list c | head\n```\n"
    assert list(commands_in(text)) == ["vlmbench run --model a   # b", "vlmbench list c", "vlmbench doctor"]
    assert sum(len(list(commands_in(path.read_text(encoding="utf-8")))) for path in PAGES) > 100


@pytest.mark.parametrize("page", NAMES)
def test_every_link_within_the_repository_leads_to_a_file(page: str) -> None:
    for link in LINK.findall(FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))):
        if not link.startswith(("https://", "#")):
            assert ((ROOT / page).parent / link.partition("#")[0]).is_file(), link


@pytest.mark.parametrize("page", NAMES)
def test_every_file_and_name_of_the_package_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for path in FILE.findall(text):
        assert (ROOT / path).is_file() or (ROOT / "robustbench_vlm" / path).is_file(), path
    groups = {registry.group for registry in REGISTRIES}
    for name in set(DOTTED.findall(text)) - groups:
        assert pkgutil.resolve_name(name), name


def test_a_wrong_file_and_a_wrong_name_are_seen() -> None:
    text = "`engine/engines.py`, robustbench_vlm/core/files.py, my_package/attacks.py, robustbench_vlm.core.errors."
    assert FILE.findall(text) == ["engine/engines.py", "robustbench_vlm/core/files.py"]
    assert DOTTED.findall(text) == ["robustbench_vlm.core.errors"]


def test_every_command_has_a_page() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md"))
    written = {words.split()[1] for words in commands_in(text)}
    assert set(PROGRAM.commands) <= written  # type: ignore[attr-defined]


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_those_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    # A script imports other scripts of its folder.
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    tables = load_script("docs_tables")
    for page in tables.TABLES:
        text = (DOCS / page).read_text(encoding="utf-8")
        assert tables.filled(page, text) == text, "run `python benchmarks/docs_tables.py`"
    page = (DOCS / "warnings.md").read_text(encoding="utf-8")
    assert all(f"| `{code}` | {warning.meaning} | {warning.advice} |" in page for code, warning in WARNINGS.items())
    protocols = (DOCS / "protocols.md").read_text(encoding="utf-8")
    assert all(f"## {PROTOCOLS.load(name).label}\n" in protocols for name in PROTOCOLS.table)


def test_the_figure_of_the_readme_agrees_with_the_entries() -> None:
    figure = load_script("leaderboard_figure")
    drawn = figure.drawn(make_board("mini", ROOT / "leaderboards" / "mini"))
    assert figure.FIGURE.read_text(encoding="utf-8") == drawn, "run `python benchmarks/leaderboard_figure.py`"


@pytest.mark.parametrize("path", sorted((DOCS / "images").iterdir()), ids=lambda path: path.name)
def test_figures_have_colours_for_light_and_dark_and_fetch_nothing(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    light, dark = text.split("@media (prefers-color-scheme: dark)")
    assert path.suffix == ".svg" and all(".panel" in part and "text {" in part for part in (light, dark))
    assert set(re.findall(r"https?://[^\"]*", text)) == {"http://www.w3.org/2000/svg"}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


class _Addresses(HTMLParser):
    """Collects what a page makes a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.fetched.append(values.get("src") or "")
        if tag == "link" and values.get("rel") != "canonical":
            self.fetched.append(values.get("href") or "")


def test_the_site_builds_and_fetches_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    began = time.monotonic()
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert time.monotonic() - began < 60
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(list(DOCS.rglob("*.md")))
    for page in pages:
        reader = _Addresses()
        reader.feed(page.read_text(encoding="utf-8"))
        assert reader.fetched and not [each for each in reader.fetched if re.match(r"(https?:)?//", each)], page


def test_the_notebook_runs_and_holds_what_it_shows(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "notebook.py"), "--out", str(tmp_path / "notebook.ipynb")]
    environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert answer.returncode == 0, answer.stderr
    stored, fresh = (
        nbformat.read(path, as_version=4) for path in (DOCS / "notebook.ipynb", tmp_path / "notebook.ipynb")
    )
    assert [_shown(cell) for cell in stored.cells] == [_shown(cell) for cell in fresh.cells]
    assert (DOCS / "notebook.ipynb").stat().st_size < 100_000


def _shown(cell: Any) -> list[str]:
    """Return the texts that a cell shows; of an image, that there is one."""
    texts = [output.get("text") or output.data.get("text/plain", "") for output in cell.get("outputs", [])]
    return [cell.source, *("".join(text) for text in texts)]


def test_the_documentation_has_the_colours_and_fonts_of_the_leaderboard_site() -> None:
    board = (ROOT / "robustbench_vlm/leaderboard/site/style.css").read_text(encoding="utf-8")
    pairs = dict(re.findall(r"--(\w+): light-dark\((#\w+, #\w+)\)", board))
    own = (DOCS / "stylesheets/board.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--(\w+): (#\w+);", part)) for part in own.split('"slate"', 1))
    assert {name: f"{light[name]}, {dark[name]}" for name in light} == {name: pairs[name] for name in light}
    assert len(light) == len(dark) == 6
    fonts = re.findall(r"--(?:serif|sans|mono): .*;", own)
    assert len(fonts) == 3 and all(font in board for font in fonts)
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "stylesheets/board.css" in settings and settings.count("primary: custom") == 2
