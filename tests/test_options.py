"""The options of the command line, frozen: whoever adds or renames one says so here."""

from typing import Any

import pytest
import typer

from robustbench_vlm.cli import app

REQUEST = """--attack --batch --dataset --device --eps --images --json --model --norm --out --prompt --protocol
 --samples --skip-unreadable --track --workers"""
OPTIONS = {
    "run": REQUEST,
    "plan": REQUEST,
    "list": "KIND --json --track",
    "show": "KIND NAME --json --track",
    "check": "KIND NAME --json --track",
    "doctor": "--json --model --track",
    "diagnose": "--attack --dataset --device --eps --json --model --plot --samples --track",
    "pretrain": "--json --out --track",
    "train": """DEFENSE --base --device --epochs --eps --images --json --out --pictures --precision --resume
 --save-every --seed --set --track""",
    "sweep": """DEFENSE --base --device --epochs --eps --images --json --out --over --pictures --plot --precision --seed
 --set --share --track""",
}
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_the_commands() -> None:
    assert list(COMMANDS) == list(OPTIONS)


@pytest.mark.parametrize("command", OPTIONS)
def test_the_options_of_a_command(command: str) -> None:
    found = [
        parameter.metavar if parameter.param_type_name == "argument" else parameter.opts[0]
        for parameter in COMMANDS[command].params
    ]
    assert sorted(found) == sorted(OPTIONS[command].split())


@pytest.mark.parametrize("command", OPTIONS)
def test_every_command_and_option_is_explained(command: str) -> None:
    assert "vlmbench " + command in COMMANDS[command].epilog
    for parameter in COMMANDS[command].params:
        assert parameter.help, parameter.name
