"""Every command and example of the documentation runs and prints what its page shows, or says why no test runs it."""

import shutil
import sys
from pathlib import Path

import pandas
import pytest
from page_session import Session, blocks_of, matches

from robustbench_vlm.engine import resources

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]
RUN = [name for name in NAMES if any(block.is_run for block in blocks_of((ROOT / name).read_text(encoding="utf-8")))]


@pytest.mark.parametrize("page", NAMES)
def test_every_command_is_run_or_marked(page: str) -> None:
    for block in blocks_of((ROOT / page).read_text(encoding="utf-8")):
        assert not block.problem, f"{page}:{block.line}: {block.problem}"


@pytest.mark.parametrize("page", RUN)
def test_the_page_shows_what_its_commands_print(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    if "in a clone of the repository" in text:
        shutil.copytree(ROOT / "leaderboards", tmp_path / "leaderboards")
        shutil.copy(ROOT / "README.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    # pip installs the packages of a page into the folder, without an index.
    site = tmp_path / "site-packages"
    site.mkdir()
    for name, value in (("TARGET", str(site)), ("NO_INDEX", "1"), ("NO_DEPS", "1"), ("NO_BUILD_ISOLATION", "0")):
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", f"{site}:{ROOT}")
    monkeypatch.setenv("COLUMNS", "120")
    # One worker runs in this process, and does not import torch again.
    monkeypatch.setattr(resources, "cores", lambda: 1)
    with pandas.option_context("display.width", 120):
        Session(tmp_path).run(page, blocks_of(text))


def test_outputs_are_compared_without_times_and_spaces() -> None:
    assert matches("a  1\n...\nin 3 s\n", "a 1\nb 2\n\nc 3\nin 12 s\n")
    assert matches("fingerprint 0123456789ab\n", "fingerprint ba9876543210\n")
    assert not matches("a 1\n...\n", "a 2\nb\n") and not matches("a\n", "a\nb\n")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```\nvlmbench doctor\n```\n", "a command in a block that is not bash"),
        ('```bash title="later"\nvlmbench doctor\n```\n', "unknown title 'later'"),
        ('```bash title="needs network"\nvlmbench data prepare dtd\n```\n', ""),
        ("```bash\nvlmbench doctor\n```\n", ""),
    ],
)
def test_a_command_without_a_mark_is_seen(text: str, problem: str) -> None:
    (block,) = blocks_of(text)
    assert block.problem == problem


def test_a_wrong_output_and_a_failing_command_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = blocks_of("```bash\necho 1\n```\n\n```text\n2\n```\n")
    with pytest.raises(AssertionError, match="shows another output"):
        Session(tmp_path).run("page", wrong)
    with pytest.raises(AssertionError, match="ended with 1"):
        Session(tmp_path).run("page", blocks_of("```bash\nfalse\n```\n"))
    Session(tmp_path).run("page", blocks_of('```bash title="exit code 1"\nfalse\n```\n'))


def test_a_script_of_a_page_runs_and_leaves_no_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    part = '```python title="part_of_a_page.py"\nnumber = 3\n```\n'
    script = (
        '```python title="script.py"\nimport sys\nfrom part_of_a_page import number\nprint(number, sys.argv)\n```\n'
    )
    command = "```bash\npython script.py\n```\n\n```text\n3 ['script.py']\n```\n"
    Session(tmp_path).run("page", blocks_of(part + script + command))
    assert "part_of_a_page" not in sys.modules and str(tmp_path) not in sys.path
    with pytest.raises(AssertionError, match=r"ended with 1(.*\n)*ZeroDivisionError"):
        Session(tmp_path).run("page", blocks_of('```python title="script.py"\n1 / 0\n```\n' + command))
