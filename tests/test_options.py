"""The options of each command. A change of an option must be made here too."""

from typing import Any

import pytest
import typer

from robustbench_vlm.cli.main import app
from robustbench_vlm.cli.show import EXAMPLES

REQUEST = """[MODEL]... --address --attack --batch-size --data --dataset --device --draws --engine --eot --eps
 --images --json --model --norm --out --prompt --protocol --samples --skip-unreadable --track --workers"""
OPTIONS = {
    "run": f"{REQUEST} --eps-curve --half-width",
    "plan": f"{REQUEST} --detect --half-width",
    "list": "KIND --json --track",
    "diff": "protocol NAME NAME --json",
    "check": "KIND NAME --device --json --track",
    "doctor": "--json --model --track",
    "diagnose": "[MODEL]... --attack --data --dataset --device --eps --json --model --plot --samples --track",
    "compare": "NAME --attack --curves --eps --format --heatmap --json --no-intervals --out --plot --track",
    "transfer": """[MODEL]... --attack --batch-size --data --dataset --device --eps --json --model --norm --plot
 --protocol --samples --save --track --workers""",
    "autopsy": """[MODEL]... --batch-size --budget --data --dataset --device --eps --held-out --json --model --norm
 --out --plot --protocol --samples --track""",
    "convert": "FILE --base --defense --json --name --out --track",
    "pretrain": "--json --out --track",
    "train": """DEFENSE --base --device --epochs --eps --images --json --num-images --out --precision --resume
 --save-every --seed --set --track""",
    "sweep": """DEFENSE --base --device --epochs --eps --images --json --num-images --out --grid --plot --precision
 --seed --set --track --train-fraction""",
    "submit": "RUN --code --contact --data --json --model --note --out --records",
    "verify": """ENTRY --add --attempt --attestation --check --data --dataset --device --full --json --model
 --samples --seed --sign --since --workers""",
    "dispute": "ENTRY --data --images --json --model",
    **{f"show {kind}": "NAME --json --track" for kind in EXAMPLES},
    "show sample": """DATASET ID|NUMBER --attack --data --device --eps --json --model --norm --out --protocol --samples
 --track""",
    "data list": "[NAME]... --data --json",
    "data prepare": "[NAME]... --data --download --json --lists --protocol --samples",
    "data weights": "MODEL... --json --track",
    "data verify": "[NAME]... --data --json",
    "leaderboard build": "--folder --json --site",
    "leaderboard check": "--folder --json",
    "leaderboard serve": "--folder --port",
    "leaderboard migrate": "FILE... --json",
}


def _commands(group: Any, prefix: str = "") -> dict[str, Any]:
    found = {}
    for name, command in group.commands.items():
        found |= _commands(command, f"{prefix}{name} ") if hasattr(command, "commands") else {prefix + name: command}
    return found


COMMANDS = _commands(typer.main.get_command(app))


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
