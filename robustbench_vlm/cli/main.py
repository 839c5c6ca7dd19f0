"""The command line `vlmbench`: its commands, their examples, and exit codes.

Each command has its own file in this folder. Slow imports are inside functions, so that --help is fast.
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TextIO

import typer

from robustbench_vlm import __version__
from robustbench_vlm.cli import data, leaderboard, show
from robustbench_vlm.cli.autopsy import autopsy
from robustbench_vlm.cli.check import check
from robustbench_vlm.cli.compare import compare
from robustbench_vlm.cli.convert import convert
from robustbench_vlm.cli.diagnose import diagnose
from robustbench_vlm.cli.diff import diff
from robustbench_vlm.cli.dispute import dispute
from robustbench_vlm.cli.doctor import doctor
from robustbench_vlm.cli.list import list_names
from robustbench_vlm.cli.options import example
from robustbench_vlm.cli.plan import plan
from robustbench_vlm.cli.pretrain import pretrain
from robustbench_vlm.cli.render.output import note, show_document
from robustbench_vlm.cli.run import run
from robustbench_vlm.cli.submit import submit
from robustbench_vlm.cli.sweep import sweep
from robustbench_vlm.cli.train import train
from robustbench_vlm.cli.transfer import transfer
from robustbench_vlm.cli.verify import verify
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import os_error_message, os_reason

OK, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    help="Measure the robustness of zero-shot vision-language models.\n\nStart with: vlmbench run --model agft",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line and exit with its code.

    The exit code is 0 for success, 1 for failed checks, 2 for a user's error, and 130 for Ctrl-C.
    """
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        # Names of models and files may contain characters that the terminal cannot encode. Such characters are escaped,
        # so that they do not stop a run.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    code = run_command(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        code = _flush(stream, code)
    sys.exit(code)


def run_command(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code. Errors are printed as a message or, with --json, as a JSON document."""
    arguments = [_with_home_folder(argument) for argument in arguments]
    as_json = "--json" in arguments
    try:
        code = app(arguments or ["--help"], prog_name="vlmbench", standalone_mode=False) or OK
    except UserError as error:
        return _fail(str(error), USER_ERROR, as_json=as_json)
    except typer.TyperException as error:
        where = getattr(getattr(error, "ctx", None), "command_path", "vlmbench")
        return _fail(f"{error.format_message().rstrip('.')}; see `{where} --help`", USER_ERROR, as_json=as_json)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except OSError as error:
        return _fail(os_error_message(error), USER_ERROR, as_json=as_json)
    except Exception as error:
        if not as_json:
            raise
        return _fail(f"{type(error).__name__}: {error}", FAILED, as_json=True)
    if code == INTERRUPTED:
        return _fail(
            "the command was stopped by Ctrl-C; run the same command again to continue", INTERRUPTED, as_json=as_json
        )
    return int(code)


def _with_home_folder(argument: str) -> str:
    """Replace "~" by the home folder, at the start of an argument and after the "=" of --option=value.

    Shells do not replace "~" in --option=value.
    """
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    # os.path.expanduser is used, because pathlib would change a value that is not a path. For example, pathlib removes
    # a slash at the end.
    return f"{option}{equals}{os.path.expanduser(value)}"  # noqa: PTH111


def _fail(message: str, code: int, *, as_json: bool) -> int:
    if as_json:
        try:
            show_document({"error": message})
            return code
        except (OSError, UserError) as error:
            # The JSON document cannot be written to stdout, so both error messages are written to stderr.
            message = f"{message}; {error}" if str(error) != message else message
    note(f"vlmbench: {message}", style="red" if code == USER_ERROR else "")
    return code


def _open_closed_streams() -> None:
    """Open /dev/null for each closed standard stream.

    Without this, a file that is opened later would get the stream's number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def _flush(stream: TextIO, code: int) -> int:
    """Flush a standard stream and return the exit code.

    If flushing fails, the stream is replaced by /dev/null. Without this, Python would print a traceback at exit.
    """
    try:
        stream.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if code == OK and not isinstance(error, BrokenPipeError):
            note(f"vlmbench: cannot write the output: {os_reason(error)}, then repeat the command", style="red")
            return USER_ERROR
    return code


def _print_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit()


@app.callback()
def vlmbench(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Accept the options that come before the name of a command."""


def _add(name: str, command: Callable[..., Any], *examples: str) -> None:
    app.command(name, epilog=example(*examples))(command)


_add(
    "run",
    run,
    "vlmbench run --model agft --attack autoattack",
    "vlmbench run --model clip --model agft --eps 5/255 --eps 10/255",
    "vlmbench run --model agft --images my_images --samples all",
)
_add("plan", plan, "vlmbench plan --model agft --attack autoattack --samples 200")
_add("list", list_names, "vlmbench list attacks")
app.add_typer(show.app, name="show")
_add("diff", diff, "vlmbench diff protocol trusted agft-2026")
_add("check", check, "vlmbench check dataset shapes")
_add("doctor", doctor, "vlmbench doctor")
_add(
    "diagnose",
    diagnose,
    "vlmbench diagnose --model clip --model agft",
    "vlmbench diagnose --eps 5/255 --plot diagnosis.png",
)
_add(
    "compare",
    compare,
    "vlmbench compare clip tecoa agft",
    "vlmbench compare runs/mini/agft my_entry.json --attack pgd-20 --format latex --plot scatter.png",
)
_add(
    "transfer",
    transfer,
    "vlmbench transfer --plot transfer.png",
    "vlmbench transfer --model clip --model agft --save images",
)
_add("autopsy", autopsy, "vlmbench autopsy ttc+clip --out found.json --plot found.png")
app.add_typer(data.app, name="data")
_add("convert", convert, "vlmbench convert TeCoAmodel_best.pth.tar --base clip --name tecoa")
_add("pretrain", pretrain, "vlmbench pretrain --out trained/base")
_add(
    "train",
    train,
    "vlmbench train agft --set lr=5e-4",
    "vlmbench train agft --track zeroshot15 --images /data/imagenet/train",
)
_add(
    "sweep",
    sweep,
    "vlmbench sweep agft --grid lr=3e-4,1e-3,3e-3",
    "vlmbench sweep agft --grid gamma=0.2,0.4,0.8 --grid scale=100,180 --plot gamma.png",
)
app.add_typer(leaderboard.app, name="leaderboard")
_add("submit", submit, "vlmbench submit runs/mini/agft --code https://example.org/my-defense")
_add(
    "verify",
    verify,
    "vlmbench verify leaderboards/mini/agft.json --samples 200",
    "vlmbench verify leaderboards/mini/agft.json --check",
)
_add("dispute", dispute, "vlmbench dispute leaderboards/mini/agft.json --images broken.safetensors")
