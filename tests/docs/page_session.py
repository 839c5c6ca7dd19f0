"""Run the code blocks of one documentation page, in order, in one folder.

The info string of a block decides its use:

* bash: each line is a command and must exit with 0. With title="exit code N" the last one must exit with N.
* text after such a block: the standard output of its commands, with standard error if they fail. A line "..." leaves
  out any number of lines. Times, digests, memory and numbers of processes are not compared, and runs of spaces count
  as one.
* pycon: an example for doctest. python: executed. Both share their variables with the blocks before.
* any language with the name of a file as title: the file, written to the folder.
* title="needs ..." or title="takes ...": not run, and the title gives the reason. title="excerpt": a part of a file.
"""

import contextlib
import doctest
import importlib
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustbench_vlm.cli.main import run_command

_BLOCK = re.compile(r"^```(\w*)(?: title=\"([^\"]*)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"[\w./-]+\.\w+")
_EXIT_CODE = re.compile(r"exit code (\d+)")
_COMMAND = re.compile(r"^(?:\.venv/bin/)?(?:vlmbench|python3?|pip|make|git|accelerate|mkdocs|ray|export|ls|cat) ", re.M)
_TIME = re.compile(r"\b\d+(?:\.\d+)? (?:s|min|h)\b(?: \d+ min\b)?")
_DIGEST = re.compile(r"\b[0-9a-f]{12,64}\b")
_MACHINE = re.compile(r"\b\d+ process(?:es)? on cpu|\b\d+\.\d GiB")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    title: str
    text: str
    line: int

    @property
    def is_file(self) -> bool:
        return _FILE.fullmatch(self.title) is not None

    @property
    def is_marked(self) -> bool:
        """Whether the title says why no test runs the block."""
        return self.title.startswith(("needs ", "takes ")) or self.title == "excerpt"

    @property
    def exit_code(self) -> int:
        found = _EXIT_CODE.fullmatch(self.title)
        return int(found[1]) if found else 0

    @property
    def is_run(self) -> bool:
        return self.language in ("bash", "pycon", "python") and not self.is_marked and not self.is_file

    @property
    def problem(self) -> str:
        """Return the reason why the block does not follow the rules, "" if it does."""
        if self.title and not (self.is_file or self.is_marked or _EXIT_CODE.fullmatch(self.title)):
            return f"unknown title {self.title!r}"
        if self.language not in ("bash", "text") and not self.is_file and _COMMAND.search(self.text):
            return "a command in a block that is not bash"
        return ""


def blocks_of(text: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    return [
        Block(found[1], found[2] or "", found[3], text.count("\n", 0, found.start()) + 1)
        for found in _BLOCK.finditer(text)
    ]


def commands_of(block: Block) -> Iterator[str]:
    """Yield the commands of a bash block; a backslash at the end of a line continues a command."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.strip()


def matches(shown: str, printed: str) -> bool:
    """Return whether a page shows what a command printed; see the docstring of the module for what is compared."""
    parts = [""]
    for line in _plain(shown):
        if line == "...":
            parts.append("")
        else:
            parts[-1] += re.escape(line) + "\n"
    return re.fullmatch("(?:.*\n)*?".join(parts), "".join(line + "\n" for line in _plain(printed))) is not None


def _plain(text: str) -> list[str]:
    for pattern, name in ((_DIGEST, "DIGEST"), (_TIME, "TIME"), (_MACHINE, "MACHINE")):
        text = pattern.sub(name, text)
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


@dataclass
class Session:
    """A folder in which the blocks of one page run."""

    folder: Path
    """The current folder of this process."""
    variables: dict[str, Any] = field(default_factory=dict)

    def run(self, page: str, blocks: list[Block]) -> None:
        """Run the blocks in order; raise AssertionError for the first that fails or shows another output."""
        output: str | None = None
        for block in blocks:
            where = f"{page}:{block.line}"
            assert not block.problem, f"{where}: {block.problem}"
            if block.is_file:
                path = self.folder / block.title
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text, encoding="utf-8")
            elif block.language == "text":
                assert output is None or matches(block.text, output), f"{where} shows another output than\n{output}"
                output = None
            elif not block.is_run:
                output = None
            elif block.language == "bash":
                output = self._commands(where, block)
            elif block.language == "pycon":
                self._doctest(where, block)
            else:
                exec(compile(block.text, where, "exec"), self.variables)

    def _commands(self, where: str, block: Block) -> str:
        printed, commands = "", list(commands_of(block))
        for command in commands:
            code, out, error = self._command(command)
            expected = block.exit_code if command is commands[-1] else 0
            assert code == expected, f"{where}: {command} ended with {code}\n{out}\n{error}"
            printed += out + (error if code else "")
        return printed

    def _command(self, command: str) -> tuple[int, str, str]:
        words = shlex.split(command, comments=True)
        # In this process, a command needs no new import of torch, which takes seconds.
        is_script = len(words) == 2 and words[0] == "python" and words[1].endswith(".py")
        if (words[0] == "vlmbench" or is_script) and not {"&&", "|", ">"} & set(words):
            out, error = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
                code = self._script(words[1]) if is_script else run_command(words[1:])
            return code, out.getvalue(), error.getvalue()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        answer = subprocess.run(
            ["bash", "-c", command], env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        # The command may have installed a package.
        importlib.invalidate_caches()
        return answer.returncode, answer.stdout, answer.stderr

    def _script(self, name: str) -> int:
        """Run a Python file of the folder as `python NAME` does, and return the exit code."""
        before = set(sys.modules)
        arguments, sys.argv = sys.argv, [name]
        sys.path.insert(0, str(self.folder))
        try:
            # The tests make errors of warnings. A new process prints them.
            with warnings.catch_warnings(action="default"):
                runpy.run_path(name, run_name="__main__")
        except Exception:
            traceback.print_exc()
            return 1
        finally:
            sys.argv = arguments
            sys.path.remove(str(self.folder))
            # The next page may have another file with the name of an imported one.
            for module in set(sys.modules) - before:
                if str(getattr(sys.modules[module], "__file__", None)).startswith(str(self.folder)):
                    del sys.modules[module]
        return 0

    def _doctest(self, where: str, block: Block) -> None:
        test = doctest.DocTestParser().get_doctest(block.text, self.variables, where, where, block.line)
        # The test has a copy of the variables, which is copied back below.
        messages: list[str] = []
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        runner.run(test, out=messages.append, clear_globs=False)
        self.variables.update(test.globs)
        assert not runner.failures, "".join(messages)
