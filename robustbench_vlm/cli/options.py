"""The options that commands share, and how they become a request."""

import functools
import inspect
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from robustbench_vlm.cli import completion
from robustbench_vlm.core.errors import UserError

if TYPE_CHECKING:
    from robustbench_vlm.engine.resolve import Request

TRACK = "mini"
"""The track that commands take where none is named."""


def option(name: str, metavar: str, text: str) -> Any:
    """Return an option for typer that takes a value."""
    return typer.Option(name, metavar=metavar, help=text, autocompletion=completion.BY_OPTION.get(name))


_PICTURES = (".png", ".svg")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
TrackName = Annotated[str, option("--track", "NAME", "What is compared with what: `vlmbench list tracks`.")]

_KINDS = "models, datasets, attacks, defenses, procedures, tracks, protocols or architectures."
KindName = Annotated[str, typer.Argument(metavar="KIND", help=_KINDS, autocompletion=completion.kinds)]
_VALUE = "A name that `vlmbench list` shows."
ValueName = Annotated[str, typer.Argument(metavar="NAME", help=_VALUE, autocompletion=completion.of_kind)]

_MODEL = "A name, a card file or open_clip:ARCH/PRETRAINED; the track's base if none. Repeat for a grid."
_SKIP = "Go on without images that cannot be read, and count them."
_Models = Annotated[list[str] | None, option("--model", "NAME", _MODEL)]
_Attacks = Annotated[list[str], option("--attack", "NAME", "See `vlmbench list attacks`. Repeat for a grid.")]
Datasets = Annotated[
    list[str] | None, option("--dataset", "NAME", "This instead of all of the track. Repeat for more.")
]
_Eps = Annotated[list[str] | None, option("--eps", "EPS", "A part of the pixel range, as 8/255. Repeat for a grid.")]
Norm = Annotated[str, option("--norm", "NORM", "Linf or L2 instead of the track's norm.")]
ProtocolName = Annotated[str, option("--protocol", "NAME", "Another protocol than the track's first.")]
SampleCount = Annotated[str, option("--samples", "N|all", "Samples a dataset instead of the protocol's number.")]
_Images = Annotated[Path | None, option("--images", "DIR", "Your own images: one folder a class, named like it.")]
_Prompt = Annotated[str, option("--prompt", "TEXT", "What to say of a class of --images; {} is its name.")]
DataFolder = Annotated[Path | None, option("--data", "DIR", "Folder of the published datasets, else VLMBENCH_DATA.")]
_SkipUnreadable = Annotated[bool, typer.Option("--skip-unreadable", help=_SKIP)]
Workers = Annotated[int, option("--workers", "N", "Processes; 0 takes one a core, or one a GPU.")]
BatchSize = Annotated[int, option("--batch", "N", "Samples that a process holds at once; 0: as memory allows.")]
Device = Annotated[str, option("--device", "NAME", "cpu or cuda; cuda where there is one if not given.")]
_Engine = Annotated[str, option("--engine", "NAME", "local, or ray: the workers of a cluster (extra ray).")]
_Address = Annotated[str, option("--address", "HOST:PORT", "The head of a ray cluster; this machine if not given.")]
_Out = Annotated[Path, option("--out", "DIR", "Where the records go.")]

_DIAGNOSED = "A name, a card file or open_clip:ARCH/PRETRAINED; every bundled one if none. Repeat for more."
_RADII = "A part of the pixel range, as 8/255; 0 and the track's curve if none. Repeat for more."
_Diagnosed = Annotated[list[str] | None, option("--model", "NAME", _DIAGNOSED)]
_Radii = Annotated[list[str] | None, option("--eps", "EPS", _RADII)]
_Attack = Annotated[str, option("--attack", "NAME", "An attack that walks to its end: fgsm, pgd-N or cw.")]
_Pictures = Annotated[str, option("--samples", "N|all", "Samples a dataset.")]


def request_of(
    model: _Models = None,
    attack: _Attacks = ["autoattack"],  # noqa: B006
    dataset: Datasets = None,
    eps: _Eps = None,
    norm: Norm = "",
    track: TrackName = TRACK,
    protocol: ProtocolName = "",
    samples: SampleCount = "",
    images: _Images = None,
    prompt: _Prompt = "a photo of a {}.",
    data: DataFolder = None,
    skip_unreadable: _SkipUnreadable = False,
    workers: Workers = 0,
    batch: BatchSize = 0,
    device: Device = "",
    engine: _Engine = "local",
    address: _Address = "",
    out: _Out = Path("runs"),
) -> "Request":
    """Return what the options ask for; raise UserError for values that no plan can have."""
    from robustbench_vlm.engine.cost import Resources
    from robustbench_vlm.engine.resolve import Request
    from robustbench_vlm.tracks import TRACKS

    return Request(
        models=tuple(model or [TRACKS.load(track).base]),
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
        out=out,
        resources=Resources(device, workers, batch, engine=engine, address=address),
        command=shlex.join(["vlmbench", *sys.argv[1:]]),
    )


def diagnosis_of(
    model: _Diagnosed = None,
    track: TrackName = TRACK,
    dataset: Datasets = None,
    eps: _Radii = None,
    attack: _Attack = "pgd-10",
    samples: _Pictures = "32",
    data: DataFolder = None,
    device: Device = "",
) -> "Request":
    """Return what the options of `diagnose` ask for; raise UserError for values that no plan can have."""
    from robustbench_vlm.engine.cost import Resources
    from robustbench_vlm.engine.resolve import Request
    from robustbench_vlm.models.card import bundled_names
    from robustbench_vlm.tracks import TRACKS

    radii = TRACKS.load(track).eps
    return Request(
        models=tuple(model or bundled_names(track) or [TRACKS.load(track).base]),
        attacks=(attack,),
        track=track,
        datasets=tuple(dataset or ()),
        eps=tuple(eps or ("0", *radii)),
        samples=sample_count(samples),
        data=data,
        resources=Resources(device=device, workers=1),
    )


def takes_request(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command that has the options of `request_of` in place of its first parameter, the request."""
    return with_options_of(request_of, command)


def takes_diagnosis(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command that has the options of `diagnosis_of` in place of its first parameter, the request."""
    return with_options_of(diagnosis_of, command)


def with_options_of(maker: Callable[..., Any], command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command that has the options of `maker` in place of its first parameter, which is what that returns."""
    shared, own = inspect.signature(maker).parameters, list(inspect.signature(command).parameters.values())[1:]

    @functools.wraps(command)
    def with_options(**values: Any) -> Any:
        rest = {parameter.name: values.pop(parameter.name) for parameter in own}
        return command(maker(**values), **rest)

    parameters = [*shared.values(), *own]
    # typer reads a command's options from its signature and its annotations.
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del with_options.__wrapped__
    return with_options


def numbers(settings: Sequence[str]) -> dict[str, float]:
    """Return the settings "name=number" by name; raise UserError for one of another form."""
    found = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise UserError(f"--set {setting!r} is not NAME=NUMBER, as in --set lr=5e-4") from None
    return found


def number_lists(settings: Sequence[str]) -> dict[str, list[float]]:
    """Return the settings "name=number,number,..." by name; raise UserError for one of another form."""
    found = {}
    for setting in settings:
        name, _, values = setting.partition("=")
        if name in found:
            raise UserError(f"--over {name} is given twice: name all its values at once, as in --over lr=3e-4,1e-3")
        try:
            found[name] = list(dict.fromkeys(float(value) for value in values.split(",")))
        except ValueError:
            raise UserError(f"--over {setting!r} is not NAME=N,N,..., as in --over lr=3e-4,1e-3") from None
    return found


def check_plot(path: Path | None, name: str = "--plot") -> None:
    """Raise UserError where no image can be written to `path`, the option of that name: before the work.

    Nothing without a `path`.
    """
    if path is None:
        return
    if path.suffix.lower() not in _PICTURES:
        raise UserError(f"{name} {path} is no image that can be written: end it in {' or '.join(_PICTURES)}")
    if path.is_dir() or not path.parent.is_dir():
        wrong = "is a folder" if path.is_dir() else f"lies in {path.parent}, which is no folder"
        raise UserError(f"{name} {path} {wrong}: give a file in a folder that is there, such as diagnosis.png")


def example(*commands: str) -> str:
    """Return the end of a command's help: how it is typed."""
    return "\n\n".join(
        ["Example:" if len(commands) == 1 else "Examples:", "\b\n" + "\n".join(f"  {c}" for c in commands)]
    )


def sample_count(text: str) -> int | Literal["all"] | None:
    """Read a number of samples, "all", or nothing; raise UserError for anything else."""
    if text in ("", "all"):
        return "all" if text else None
    if not text.isdecimal() or int(text) == 0:
        raise UserError(f"--samples {text!r} is no number of samples: give 1 or more, or all")
    return int(text)
