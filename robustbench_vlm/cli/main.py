"""The command line `vlmbench`; heavy imports wait until a command needs them, so that --help is quick."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_vlm import __version__
from robustbench_vlm.cli import compare, convert, data, leaderboard, look, submit, train, transfer
from robustbench_vlm.cli.options import (
    TRACK,
    Json,
    KindName,
    TrackName,
    ValueName,
    check_plot,
    example,
    option,
    takes_diagnosis,
    takes_request,
    with_options_of,
)
from robustbench_vlm.cli.render import screen
from robustbench_vlm.core.errors import UserError

if TYPE_CHECKING:
    from robustbench_vlm.engine.resolve import Request

OK, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    help="Clean and robust accuracy of zero-shot vision-language models.\n\nBegin with: vlmbench run --model agft",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line and leave with its exit code: 0, 1 failed checks, 2 user error, 130 Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding lacks must not end a run.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; errors become a message, or a document where --json is given."""
    as_json = "--json" in arguments
    try:
        code = app(list(arguments) or ["--help"], prog_name="vlmbench", standalone_mode=False) or OK
    except UserError as error:
        return _fail(str(error), USER_ERROR, as_json=as_json)
    except typer.TyperException as error:
        where = getattr(getattr(error, "ctx", None), "command_path", "vlmbench")
        return _fail(f"{error.format_message().rstrip('.')}; see `{where} --help`", USER_ERROR, as_json=as_json)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if not as_json:
            raise
        return _fail(f"{type(error).__name__}: {error}", FAILED, as_json=True)
    if code == INTERRUPTED:
        return _fail("stopped; the same command goes on where it stopped", INTERRUPTED, as_json=as_json)
    return int(code)


def _fail(message: str, code: int, *, as_json: bool) -> int:
    if as_json:
        screen.show_document({"error": message})
    else:
        screen.note(f"vlmbench: {message}", style="red" if code == USER_ERROR else "")
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
    """Carry the options that come before a command."""


@app.command(
    epilog=example(
        "vlmbench run --model agft --attack autoattack",
        "vlmbench run --model clip --model agft --eps 5/255 --eps 10/255",
        "vlmbench run --model agft --images my_pictures --samples all",
    )
)
@takes_request
def run(request: "Request", as_json: Json = False) -> None:
    """Measure clean and robust accuracy.

    What is on disk already is not computed again: a run that was stopped is finished by the same command.
    """
    from robustbench_vlm.cli.render import report
    from robustbench_vlm.engine.backends import ENGINES
    from robustbench_vlm.engine.resolve import make_plan
    from robustbench_vlm.engine.run import run_plan

    screen.note("reading models and images", quiet=as_json)
    ENGINES.load(request.resources.engine).prepare(request.resources)
    with screen.progress("read", quiet=as_json) as on_progress:
        plan = make_plan(request, on_progress)
    screen.note(report.totals(plan), quiet=as_json)
    with screen.progress("samples", quiet=as_json) as on_progress:
        result = run_plan(plan, on_progress=on_progress)
    screen.answer(result.to_json(), lambda width: report.run_lines(result, width), as_json=as_json)


@app.command(epilog=example("vlmbench plan --model agft --attack autoattack --samples 200"))
@takes_request
def plan(request: "Request", as_json: Json = False) -> None:
    """Say what a run would cost.

    Takes the options of `run`, measures the model's speed, and computes nothing else.
    """
    from robustbench_vlm.cli.render import report
    from robustbench_vlm.engine.resolve import make_plan

    with screen.progress("read", quiet=as_json) as on_progress:
        planned = make_plan(request, on_progress)
    screen.answer(report.plan_document(planned), lambda width: report.plan_lines(planned, width), as_json=as_json)


app.command("list", epilog=example("vlmbench list attacks"))(look.list_names)
app.command(epilog=example("vlmbench diff protocol trusted agft-2026"))(look.diff)


@app.command(epilog=example("vlmbench check dataset shapes"))
def check(kind: KindName, name: ValueName, track: TrackName = TRACK, as_json: Json = False) -> int:
    """Check the contracts of one value.

    Exit code 1: one is broken. What plugins add has the same contracts as what is here.
    """
    from robustbench_vlm.analysis import contracts

    found = contracts.check(kind.removesuffix("s"), name, track=track)
    return _report([(each.name, each.passed, each.detail) for each in found], as_json=as_json)


@app.command(epilog=example("vlmbench doctor"))
def doctor(
    track: TrackName = TRACK,
    model: Annotated[str, option("--model", "NAME", "An undefended model other than the track's.")] = "",
    as_json: Json = False,
) -> int:
    """Test the harness itself.

    If a test fails (exit code 1), believe no number of this installation.
    """
    from robustbench_vlm.analysis.doctor import doctor as examine

    screen.note("testing the harness", quiet=as_json)
    found = examine(track, model=model)
    return _report([(each.name, each.passed, each.detail) for each in found], as_json=as_json)


@app.command(
    epilog=example("vlmbench diagnose --model clip --model agft", "vlmbench diagnose --eps 5/255 --plot diagnosis.png")
)
@takes_diagnosis
def diagnose(
    request: "Request",
    plot: Annotated[Path | None, option("--plot", "FILE", "A PNG or SVG file for curves over the radius.")] = None,
    as_json: Json = False,
) -> None:
    """Measure what goes with robustness.

    Modality gap, norm of the input gradient and rank of the features, on the images that an attack ends at.
    """
    from robustbench_vlm.analysis.diagnose import diagnose as examine
    from robustbench_vlm.cli.render import diagnosis

    check_plot(plot)
    screen.note("reading models and images", quiet=as_json)
    with screen.progress("samples", quiet=as_json) as on_progress:
        found = examine(request, on_progress=on_progress)
    diagnosis.plot(found, plot)
    screen.answer(found.to_json(), lambda width: diagnosis.lines(found, width), as_json=as_json)


app.command(
    epilog=example(
        "vlmbench compare clip tecoa agft",
        "vlmbench compare runs/mini/agft my_entry.json --attack pgd-20 --format latex --plot scatter.png",
    )
)(compare.compare)
app.command(
    epilog=example("vlmbench transfer --plot transfer.png", "vlmbench transfer --model clip --model agft --save images")
)(with_options_of(transfer.request_of, transfer.transfer))
app.add_typer(look.show, name="show")
app.add_typer(data.app, name="data")
app.command(epilog=example("vlmbench convert TeCoAmodel_best.pth.tar --base clip --name tecoa"))(convert.convert)
app.command(epilog=example("vlmbench pretrain --out trained/base"))(train.pretrain)
app.command(
    epilog=example(
        "vlmbench train agft --set lr=5e-4",
        "vlmbench train agft --track zeroshot15 --images /data/imagenet/train",
    )
)(train.train)
app.command(
    epilog=example(
        "vlmbench sweep agft --over lr=3e-4,1e-3,3e-3",
        "vlmbench sweep agft --over gamma=0.2,0.4,0.8 --over scale=100,180 --plot gamma.png",
    )
)(train.sweep)
app.add_typer(leaderboard.app, name="leaderboard")
app.command(epilog=example("vlmbench submit runs/mini/agft --code https://example.org/my-defense"))(submit.submit)
app.command(
    epilog=example(
        "vlmbench verify leaderboards/mini/agft.json --samples 200",
        "vlmbench verify leaderboards/mini/agft.json --check",
    )
)(submit.verify)
app.command(epilog=example("vlmbench dispute leaderboards/mini/agft.json --images broken.safetensors"))(submit.dispute)


def _report(found: Sequence[tuple[str, bool, str]], *, as_json: bool) -> int:
    passed = all(each for _, each, _ in found)
    checks = [{"name": name, "passed": ok, "detail": detail} for name, ok, detail in found]
    lines = [
        screen.Line(
            f"{'ok    ' if ok else 'FAILED'}  {name}{f' ({detail})' if detail else ''}",
            "" if ok else "red",
        )
        for name, ok, detail in found
    ]
    screen.answer({"passed": passed, "checks": checks}, lambda width: lines, as_json=as_json)
    return OK if passed else FAILED
