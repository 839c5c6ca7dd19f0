"""The commands `vlmbench data list|prepare|verify`: what of the published datasets is there, and how it gets there."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_vlm.cli import completion
from robustbench_vlm.cli.options import DataFolder, Json, SampleCount, example, option, sample_count
from robustbench_vlm.cli.render import screen
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import write_text
from robustbench_vlm.core.progress import Progress

if TYPE_CHECKING:
    from robustbench_vlm.datasets.published.status import Prepared, Shelf

_Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME]...",
        help="Datasets; all of the track if none.",
        autocompletion=completion.BY_KIND["dataset"],
    ),
]
_Protocol = Annotated[str, option("--protocol", "NAME", "Whose images are prepared: `vlmbench list protocols`.")]
_Lists = Annotated[Path | None, option("--lists", "DIR", "Where to write the samples' ids and labels, a file a set.")]
_Download = Annotated[bool, typer.Option("--download/--no-download", help="Fetch what is not there.")]
TRACK = "zeroshot15"
SHOWN = 5
"""Images that cannot be decoded, a dataset, that are listed."""

app = typer.Typer(help="Fetch, prepare and check published datasets.", rich_markup_mode=None)


@app.command("list", epilog=example("vlmbench data list", "vlmbench data list cifar10 --data /data"))
def list_data(names: _Names = None, data: DataFolder = None, as_json: Json = False) -> None:
    """Say which datasets are there, which are missing, and how big they are."""
    from robustbench_vlm.datasets.published.status import shelf

    found = [shelf(name, data) for name in _chosen(names)]
    more = [] if names else [screen.Line(""), screen.Line(f"also, by name: {', '.join(_extra())}")]
    document = {"data": [vars(each) for each in found]}
    screen.answer(document, lambda width: [*_shelf_lines(found, width), *more], as_json=as_json)


@app.command(
    epilog=example("vlmbench data prepare cifar10 dtd", "vlmbench data prepare imagenet --data /data --samples all")
)
def prepare(
    names: _Names = None,
    data: DataFolder = None,
    protocol: _Protocol = "trusted",
    samples: SampleCount = "",
    lists: _Lists = None,
    download: _Download = True,
    as_json: Json = False,
) -> int:
    """Fetch datasets that are not there, then decode and resize their images once for all runs.

    The same command goes on where an earlier one was stopped. One that cannot be had keeps no other from being
    prepared (exit code 2).
    """
    from robustbench_vlm.datasets.published.status import obtain
    from robustbench_vlm.protocols import PROTOCOLS

    chosen = PROTOCOLS.load(protocol)
    count = sample_count(samples)
    if count is not None:
        chosen = chosen.with_samples(None if count == "all" else count)
    found, failed = {}, {}
    with screen.progress("done", quiet=as_json) as on_progress:
        for name in _chosen(names):
            try:
                found[name] = obtain(name, chosen.adapt_dataset, chosen.samples, data, on_progress, download=download)
            except UserError as error:
                failed[name] = str(error)
    if failed and not found:
        raise UserError("; ".join(failed.values()))
    if lists is not None:
        for name, each in found.items():
            write_text(lists / f"{name}-{each.samples}.csv", each.sample_list)
    said = {
        name: {key: value for key, value in vars(each).items() if key != "sample_list"} for name, each in found.items()
    }
    document = {"protocol": chosen.label, "prepared": said, "failed": failed}
    screen.answer(document, lambda width: _prepared_lines(found, failed), as_json=as_json)
    return 2 if failed else 0


def _prepared_lines(found: Mapping[str, "Prepared"], failed: Mapping[str, str]) -> list[screen.Line]:
    texts = {
        name: f"{each.samples} samples, list {each.list_digest[:12]}, {each.folder}" for name, each in found.items()
    }
    lines = [screen.Line(f"{name}: {text}") for name, text in texts.items()]
    for name, each in found.items():
        reasons = list(each.unreadable.values())
        lines += [screen.Line(f"{name}: {reason}", "yellow") for reason in reasons[:SHOWN]]
        if len(reasons) > SHOWN:
            lines.append(
                screen.Line(f"{name}: and {len(reasons) - SHOWN} more images that cannot be decoded", "yellow")
            )
    return lines + [screen.Line(f"{name}: {why}", "red") for name, why in failed.items()]


@app.command(epilog=example("vlmbench data verify cifar10"))
def verify(names: _Names = None, data: DataFolder = None, as_json: Json = False) -> int:
    """Check files, counts and prepared pixels against what they should be.

    Exit code 1: something is wrong. Datasets that are not there are left out.
    """
    from robustbench_vlm.datasets.published.status import check

    with screen.progress("datasets", quiet=as_json) as on_progress:
        found = {}
        chosen = _chosen(names)
        for number, name in enumerate(chosen):
            on_progress(Progress(number, len(chosen), label=name))
            found[name] = check(name, data, missing_is_wrong=bool(names))
    wrong = [f"{name}: {sentence}" for name, sentences in found.items() for sentence in sentences or ()]
    fine = [name for name, sentences in found.items() if sentences == []]
    lines = [screen.Line(each, "red") for each in wrong]
    lines.append(screen.Line(f"as they should be: {', '.join(fine) or 'none'}"))
    screen.answer({"passed": not wrong, "checked": found}, lambda width: lines, as_json=as_json)
    return 1 if wrong else 0


def _chosen(names: Sequence[str] | None) -> list[str]:
    from robustbench_vlm.tracks import TRACKS

    return list(names or TRACKS.load(TRACK).datasets)


def _extra() -> list[str]:
    from robustbench_vlm.datasets.published import ORIGINALS

    listed = _chosen(None)
    return [name for name in ORIGINALS if name not in listed]


def _shelf_lines(found: Sequence["Shelf"], width: int) -> list[screen.Line]:
    from robustbench_vlm.cli.render.layout import Columns, table

    rows = [
        {
            "dataset": each.name,
            "samples": str(each.samples),
            "here": str(each.here or "-"),
            "prepared": str(each.prepared or "-"),
            "download": _size(each.download_bytes),
            "missing": "" if each.here else each.where,
        }
        for each in found
    ]
    return table(rows, Columns((), "dataset", ("samples", "here", "prepared", "download"), "missing"), width)


def _size(count: int) -> str:
    if not count:
        return "?"
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.0f} MiB"
