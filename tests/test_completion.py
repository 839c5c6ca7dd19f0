"""Shell completion: the answers to bash, zsh and fish, from the program as users run it."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from quickness import least_seconds

from robustbench_vlm.attacks import ATTACKS
from robustbench_vlm.cli import completion, kinds
from robustbench_vlm.cli.main import app
from robustbench_vlm.core.threat import NORMS
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.defenses import DEFENSES
from robustbench_vlm.models import card_names
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.tracks import TRACKS

PROGRAM = "from robustbench_vlm.cli.main import main; main()"


@pytest.fixture(scope="module")
def vlmbench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a program `vlmbench` like the installed one."""
    path = tmp_path_factory.mktemp("bin") / "vlmbench"
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c "{PROGRAM}" "$@"\n')
    path.chmod(0o755)
    return path


def asked(program: Path, words: str) -> list[str]:
    """Return the completions that bash gets with the cursor at the end of `words`."""
    typed = words.split(" ")
    environment = {"COMP_WORDS": words, "COMP_CWORD": str(len(typed) - 1), "_VLMBENCH_COMPLETE": "complete_bash"}
    answer = subprocess.run([program], env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    assert answer.stderr == ""
    return answer.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("vlmbench diag", ["diagnose"]),
        ("vlmbench run --att", ["--attack"]),
        ("vlmbench run --attack ", ATTACKS.names()),
        ("vlmbench run --attack apgd", ["apgd-ce", "apgd-dlr", "apgd-features", "apgd-rescaled", "apgd-t"]),
        ("vlmbench run --model ", card_names("mini")),
        ("vlmbench run --track zeroshot15 --model fare-4-l", None),
        ("vlmbench run --model ttc+ag", ["ttc+agft"]),
        ("vlmbench run --model agft --dataset day", ["day-night"]),
        ("vlmbench run --track ", TRACKS.names()),
        ("vlmbench plan --norm ", list(NORMS)),
        ("vlmbench run --engine l", ["local"]),
        ("vlmbench run --protocol ", PROTOCOLS.names()),
        ("vlmbench show te", ["test-time-defense"]),
        ("vlmbench list t", ["test-time-defenses", "tracks"]),
        ("vlmbench compare ag", ["agft"]),
        ("vlmbench show protocol tr", ["trusted", "trusted-native"]),
        ("vlmbench check defenses ", DEFENSES.names()),
        ("vlmbench diff protocol trusted ag", ["agft-2026"]),
        ("vlmbench train ", DEFENSES.names()),
        ("vlmbench data prepare cifar10 dt", ["dtd"]),
        ("vlmbench convert --base cl", None),
        ("vlmbench run --eps ", []),
        ("vlmbench run --model my_models/", []),
    ],
)
def test_bash_gets_the_right_completions(vlmbench: Path, words: str, expected: list[str] | None) -> None:
    begun = words.split(" ")[-1]
    if expected is None:
        expected = [name for name in card_names("zeroshot15") if name.startswith(begun)]
        assert len(expected) > 1
    assert sorted(asked(vlmbench, words)) == sorted(expected)


def test_completion_takes_less_than_half_a_second(vlmbench: Path) -> None:
    assert least_seconds(lambda: asked(vlmbench, "vlmbench run --track zeroshot15 --model fare")) < 0.5


def test_a_real_bash_completes(vlmbench: Path) -> None:
    """Run the script of `--show-completion` in bash, and call the completion function as a key press does."""
    script = (
        f'PATH="{vlmbench.parent}:$PATH"; source <(vlmbench --show-completion bash)\n'
        "complete -p vlmbench\n"
        "COMP_WORDS=(vlmbench run --attack apgd-) COMP_CWORD=3\n"
        '_vlmbench_completion vlmbench apgd- --attack; echo "${COMPREPLY[@]}"\n'
    )
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    shell = shutil.which("bash")
    assert shell
    answer = subprocess.run([shell, "-c", script], env=environment, capture_output=True, text=True, check=True)
    said, found = answer.stdout.splitlines()
    # Without completions, bash offers files, because a card file is allowed too.
    assert "-o default" in said and found.split() == ["apgd-ce", "apgd-dlr", "apgd-features", "apgd-rescaled", "apgd-t"]


@pytest.mark.parametrize(
    ("shell", "action", "expected"),
    [("zsh", "", "_arguments '*: :((\"fgsm\"))'"), ("fish", "get-args", "fgsm")],
)
def test_other_shells_get_the_right_completions(vlmbench: Path, shell: str, action: str, expected: str) -> None:
    environment = {
        "_TYPER_COMPLETE_ARGS": "vlmbench run --attack fg",
        "_TYPER_COMPLETE_FISH_ACTION": action,
        "_VLMBENCH_COMPLETE": f"complete_{shell}",
    }
    answer = subprocess.run([vlmbench], env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_installation_writes_the_file_that_the_shell_reads(vlmbench: Path, shell: str, tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [vlmbench, "--install-completion", shell]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert f"{shell} completion installed in {tmp_path}" in answer.stdout
    assert any("_VLMBENCH_COMPLETE" in path.read_text() for path in tmp_path.rglob("*") if path.is_file())


def _commands(group: typer.core.TyperGroup) -> list[typer.core.TyperCommand]:
    found: list[typer.core.TyperCommand] = []
    for command in group.commands.values():
        found += _commands(command) if hasattr(command, "commands") else [command]
    return found


def test_every_option_that_takes_a_name_completes() -> None:
    free = {"--name", "--precision"}
    for command in _commands(typer.main.get_command(app)):
        for parameter in command.params:
            name = parameter.opts[0]
            if parameter.metavar == "NAME" and name not in free:
                assert parameter._custom_shell_complete, f"{command.name} {name}"


def test_completion_offers_the_names_that_list_prints() -> None:
    assert list(completion.BY_KIND) == list(kinds.KINDS)
    context = typer.Context(typer.main.get_command(app))
    for kind, complete in completion.BY_KIND.items():
        for track in TRACKS.names():
            context.params["track"] = track
            assert complete(context, "") == list(kinds.KINDS[kind].names(track if kind == "model" else "")), kind
    assert "shapes" in DATASETS.names()
