"""Options that several commands share, and the function that makes a request from the options of `run` and `plan`."""

import functools
import inspect
import shlex
import sys
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from robustbench_vlm import tracks
from robustbench_vlm.cli import completion
from robustbench_vlm.cli.render.output import note
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.threat import doubtful_eps

if TYPE_CHECKING:
    from robustbench_vlm.engine.request import Request

DEFAULT_TRACK = tracks.DEFAULT_TRACK
"""Default value of --track."""
REAL_TRACK = "zeroshot15"
"""Default value of --track for commands on published datasets and checkpoints."""
_FIGURE_FORMATS = (".png", ".svg")


def option(name: str, metavar: str, text: str, *, alias: str = "") -> Any:
    """Return a typer option that takes a value. `alias` is a second name of the option."""
    names = [name, alias] if alias else [name]
    return typer.Option(*names, metavar=metavar, help=text, autocompletion=completion.BY_OPTION.get(name))


Json = Annotated[bool, typer.Option("--json", help="Print only one JSON document on stdout.")]
TrackName = Annotated[
    str, option("--track", "NAME", "Track: a base model with its datasets and radii. See `vlmbench list tracks`.")
]
_OptionalTrack = Annotated[
    str, option("--track", "NAME", f"Track: see `vlmbench list tracks`. Default: {DEFAULT_TRACK}.")
]

_KINDS = "Kind: models, datasets, attacks, defenses, test-time-defenses, tracks, protocols or architectures."
KindName = Annotated[str, typer.Argument(metavar="KIND", help=_KINDS, autocompletion=completion.kinds)]
_VALUE = "Name, as `vlmbench list` shows it."
ValueName = Annotated[str, typer.Argument(metavar="NAME", help=_VALUE, autocompletion=completion.of_kind)]

_MODEL = "Model: a name, a card file, open_clip:ARCH/TAG or hf:ORG/NAME. Repeat for more. Default: the base model."
_SKIP = "Leave out image files that cannot be read, and report their number. Default: stop with an error."
_Models = Annotated[list[str] | None, option("--model", "NAME", _MODEL)]
ModelArguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[MODEL]...", help="Models, as in --model.", autocompletion=completion.BY_OPTION["--model"]),
]
_ATTACK = "Attack: see `vlmbench list attacks`, or an attack file, such as found.json. Repeat for more."
_Attacks = Annotated[list[str], option("--attack", "NAME", _ATTACK)]
Datasets = Annotated[
    list[str] | None, option("--dataset", "NAME", "Dataset. Default: all datasets of the track. Repeat for more.")
]
_Eps = Annotated[
    list[str] | None,
    option(
        "--eps",
        "EPS",
        "Radius as a fraction of the pixel range, such as 8/255. Repeat for more. Default: the protocol's radii, or the"
        " track's standard radius.",
    ),
]
Norm = Annotated[str, option("--norm", "NORM", "Norm of the perturbation, Linf or L2. Default: the track's norm.")]
ProtocolName = Annotated[str, option("--protocol", "NAME", "Protocol. Default: the first protocol of the track.")]
_RunProtocol = Annotated[
    str,
    option(
        "--protocol",
        "NAME",
        'Protocol. Default: the first protocol of the track, or the protocol "images" for --images without --track.',
    ),
]
SampleCount = Annotated[
    str,
    option("--samples", "N|all", "Samples per dataset. Default: the number that the protocol sets.", alias="--limit"),
]
_Images = Annotated[
    Path | None,
    option("--images", "DIR", "Folder of your own images, with one subfolder per class, named like the class."),
]
_Prompt = Annotated[
    str,
    option("--prompt", "TEXT", "Prompt template for --images. The class name replaces {}. Default: a photo of a {}."),
]
DataFolder = Annotated[
    Path | None,
    option("--data", "DIR", "Folder of the published datasets. Default: the environment variable VLMBENCH_DATA."),
]
_SkipUnreadable = Annotated[bool, typer.Option("--skip-unreadable", help=_SKIP)]
Workers = Annotated[
    int, option("--workers", "N", "Number of processes. 0 starts one per GPU, or one per CPU core without a GPU.")
]
BatchSize = Annotated[
    int,
    option("--batch-size", "N", "Samples that a process attacks at once. 0 chooses a number that fits into memory."),
]
Device = Annotated[str, option("--device", "NAME", "Device, cpu or cuda. Default: cuda if a GPU is available.")]
_Engine = Annotated[
    str,
    option("--engine", "NAME", "Engine: local for this machine, or ray for a cluster (needs robustbench_vlm[ray])."),
]
_Address = Annotated[
    str, option("--address", "HOST:PORT", "Address of the head of a ray cluster. Default: this machine.")
]
HalfWidth = Annotated[
    str | None,
    option(
        "--half-width",
        "POINTS",
        "Estimate the mean robust accuracy, such as 1.0 for an interval of plus or minus 1 point. Most samples are then"
        " attacked only with the cheap stages. Default: attack all samples in full.",
    ),
]
EpsCurve = Annotated[
    bool,
    typer.Option(
        "--eps-curve",
        help="Measure the robust accuracy at all radii up to --eps, with the attack min-eps. Default of --eps: twice"
        " the standard radius.",
    ),
]
_Draws = Annotated[
    int,
    option(
        "--draws",
        "N",
        "Classify each image of a random model with N fresh draws of its random numbers, such as 100. 0 fixes the"
        " random numbers of each sample.",
    ),
]
_Eot = Annotated[
    int,
    option("--eot", "K", "Draws of which the attacks take the mean gradient. Needs --draws. 0 uses 20."),
]
_Out = Annotated[Path, option("--out", "DIR", "Folder that the per-sample records are written to.")]


def request_of(
    named: ModelArguments = None,
    model: _Models = None,
    attack: _Attacks = ["autoattack"],  # noqa: B006
    dataset: Datasets = None,
    eps: _Eps = None,
    norm: Norm = "",
    track: _OptionalTrack = "",
    protocol: _RunProtocol = "",
    samples: SampleCount = "",
    images: _Images = None,
    prompt: _Prompt = "",
    data: DataFolder = None,
    skip_unreadable: _SkipUnreadable = False,
    draws: _Draws = 0,
    eot: _Eot = 0,
    workers: Workers = 0,
    batch_size: BatchSize = 0,
    device: Device = "",
    engine: _Engine = "local",
    address: _Address = "",
    out: _Out = Path("runs"),
) -> "Request":
    """Return the request for the given options. Raise UserError if a value is not allowed."""
    from robustbench_vlm.engine.request import Request
    from robustbench_vlm.engine.resources import Resources
    from robustbench_vlm.tracks import TRACKS

    return Request(
        models=tuple([*(named or ()), *(model or ())] or [TRACKS.load(track or DEFAULT_TRACK).base]),
        attacks=tuple(attack),
        track=track,
        datasets=tuple(dataset or ()),
        eps=tuple(eps or ()),
        norm=norm,
        protocol=protocol,
        samples=sample_count(samples),
        images=images,
        prompt=prompt,
        data=data,
        skip_unreadable=skip_unreadable,
        draws=draws,
        eot=eot,
        out=out,
        resources=Resources(device, workers, batch_size, engine=engine, address=address),
        command=shlex.join(["vlmbench", *sys.argv[1:]]),
    )


def takes_request(command: Callable[..., Any]) -> Callable[..., Any]:
    """Replace the first parameter of `command`, a request, by the options of `request_of`, and return the new function.

    If datasets or weights are missing, the new function raises an error before `command` imports torch.
    """

    @functools.wraps(command)
    def with_advice(request: "Request", **values: Any) -> Any:
        from robustbench_vlm.engine.missing import check_before_import

        question_eps(request.eps, quiet=bool(values.get("as_json")))
        check_before_import(request)
        try:
            return command(request, **values)
        except UserError as error:
            from robustbench_vlm.datasets.base import UnreadableImage

            if not isinstance(error, UnreadableImage):
                raise
            # Only commands that use `request_of` have the option --skip-unreadable. The advice to use it
            # is therefore added here.
            raise UnreadableImage(f"{error}, or skip such images with --skip-unreadable") from error

    return with_options_of(request_of, with_advice)


def with_options_of(maker: Callable[..., Any], command: Callable[..., Any]) -> Callable[..., Any]:
    """Replace the first parameter of `command` by the parameters of `maker`, and return the new function.

    The new function calls `maker`, and passes the result to `command` as its first argument.
    """
    shared, own = inspect.signature(maker).parameters, list(inspect.signature(command).parameters.values())[1:]

    @functools.wraps(command)
    def with_options(**values: Any) -> Any:
        rest = {parameter.name: values.pop(parameter.name) for parameter in own}
        return command(maker(**values), **rest)

    parameters = [*shared.values(), *own]
    # typer reads the options of a command from its signature and its annotations.
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del with_options.__wrapped__
    return with_options


def question_eps(radii: Iterable[str | Fraction], *, quiet: bool) -> None:
    """Print a note for each radius that is close to a number of 8-bit steps but not equal to it, such as 8/256."""
    for eps in radii:
        if isinstance(eps, str) and (doubt := doubtful_eps(eps)):
            note(doubt, quiet=quiet)


def check_plot(path: Path | None, name: str = "--plot") -> None:
    """Raise UserError if no figure can be written to `path`. Commands call this function before they start to work.

    `name` is the name of the option that gives the path. If `path` is None, nothing is checked.
    """
    if path is None:
        return
    if path.suffix.lower() not in _FIGURE_FORMATS:
        raise UserError(
            f"{name} must end in {' or '.join(_FIGURE_FORMATS)}, got {path}: give a file name such as diagnosis.png"
        )
    if path.is_dir() or not path.parent.is_dir():
        wrong = "this path is a folder" if path.is_dir() else f"the folder {path.parent} does not exist"
        raise UserError(f"{name} {path}: {wrong}; give a file in an existing folder, such as diagnosis.png")


def example(*commands: str) -> str:
    """Return the examples at the end of a command's help text."""
    return "\n\n".join(
        ["Example:" if len(commands) == 1 else "Examples:", "\b\n" + "\n".join(f"  {c}" for c in commands)]
    )


def points(text: str | None, name: str = "--half-width") -> float:
    """Return a number of percentage points as a share in [0, 1], or 0 for None.

    `name` is the name of the option. Raises UserError if the text is not a number above 0 and below 50.
    """
    if text is None:
        return 0.0
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 50:
        raise UserError(
            f"{name} must be a number of percentage points above 0 and below 50, got {text!r}: give 1.0 for 1 point"
        )
    return value / 100


def sample_count(text: str) -> int | Literal["all"] | None:
    """Return the number in `text`, "all" for "all", and None for "". Raise UserError for any other text."""
    if text in ("", "all"):
        return "all" if text else None
    if not text.isdecimal() or int(text) == 0:
        raise UserError(f'--samples must be a positive integer or "all", got {text!r}')
    return int(text)
