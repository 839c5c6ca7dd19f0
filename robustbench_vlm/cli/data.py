"""The commands `vlmbench data list|prepare|weights|verify`: list, download and check datasets and weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_vlm.cli import completion
from robustbench_vlm.cli.options import (
    REAL_TRACK,
    DataFolder,
    Json,
    SampleCount,
    TrackName,
    example,
    option,
    sample_count,
)
from robustbench_vlm.cli.render.output import Line, answer
from robustbench_vlm.cli.render.progress_bar import progress
from robustbench_vlm.cli.render.text_table import Columns, table
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import write_text
from robustbench_vlm.core.progress import Progress

if TYPE_CHECKING:
    from robustbench_vlm.datasets.published.status import DatasetStatus, PreparedDataset

_Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME]...",
        help="Datasets. Default: all datasets of the track.",
        autocompletion=completion.BY_KIND["dataset"],
    ),
]
_Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL...",
        help="Models: names, card files or open_clip:ARCH/TAG.",
        autocompletion=completion.BY_KIND["model"],
    ),
]
_Protocol = Annotated[
    str, option("--protocol", "NAME", "Protocol that selects the images: see `vlmbench list protocols`.")
]
_Lists = Annotated[
    Path | None,
    option("--lists", "DIR", "Folder for one file per dataset that lists the ids and labels of its samples."),
]
_Download = Annotated[bool, typer.Option("--download/--no-download", help="Download missing datasets.")]
SHOWN = 5
"""Largest number of unreadable images in the list for one dataset."""

app = typer.Typer(help="Download, prepare and check published datasets, and download weights.", rich_markup_mode=None)


@app.command("list", epilog=example("vlmbench data list", "vlmbench data list cifar10 --data /data"))
def list_data(names: _Names = None, data: DataFolder = None, as_json: Json = False) -> None:
    """List the published datasets with their sizes, and whether each is on disk, prepared or missing."""
    from robustbench_vlm.datasets.published.status import dataset_status

    found = [dataset_status(name, data) for name in _chosen(names)]
    more = _source_lines(found) if names else [Line(""), Line(f"also available by name: {', '.join(_extra())}")]
    document = {"data": [vars(each) for each in found]}
    answer(document, lambda width: [*_status_lines(found, width), *more], as_json=as_json)


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
    """Download missing datasets, then decode and resize their images once for all runs.

    If the command is stopped, run it again to resume. If one dataset cannot be prepared, the other datasets are still
    prepared, and the exit code is 2.
    """
    from robustbench_vlm.datasets.published.status import fetch_and_prepare, hosts_of
    from robustbench_vlm.protocols import PROTOCOLS

    chosen = PROTOCOLS.load(protocol)
    count = sample_count(samples)
    if count is not None:
        chosen = chosen.with_samples(None if count == "all" else count)
    found, failed = {}, {}
    hosts = hosts_of(_chosen(names)) if download else None
    with progress("done", quiet=as_json) as on_progress:
        for name in _chosen(names):
            try:
                found[name] = fetch_and_prepare(
                    name, chosen.adapt_dataset, chosen.samples, data, on_progress, hosts=hosts
                )
            except UserError as error:
                failed[name] = error
    if failed and not found:
        raise UserError("\n".join(_failures(failed)))
    if lists is not None:
        for name, each in found.items():
            write_text(lists / f"{name}-{each.samples}.csv", each.sample_list)
    prepared = {
        name: {key: value for key, value in vars(each).items() if key != "sample_list"} for name, each in found.items()
    }
    document = {
        "protocol": chosen.label,
        "prepared": prepared,
        "failed": {name: str(error) for name, error in failed.items()},
    }
    answer(document, lambda width: _prepared_lines(found, failed), as_json=as_json)
    return 2 if failed else 0


def _failures(failed: Mapping[str, UserError]) -> list[str]:
    """Return error messages. There is one for each dataset, but only one for all datasets with unreachable hosts."""
    from robustbench_vlm.core.hosts import unreachable_text
    from robustbench_vlm.datasets.published.fetch import NoSourceReachable

    offline = {name: error for name, error in failed.items() if isinstance(error, NoSourceReachable)}
    if len(offline) < 2:
        return (
            [f"{name}: {error}" for name, error in failed.items()] if len(failed) > 1 else [*map(str, failed.values())]
        )
    hosts = {host: reason for error in offline.values() for host, reason in error.hosts.items()}
    together = [
        f"cannot fetch {len(offline)} datasets: {unreachable_text(hosts)}. When the network works, run `vlmbench data"
        f" prepare {' '.join(offline)}`. To fetch them by hand:",
        *(f"  {name}: {error.by_hand}" for name, error in offline.items()),
    ]
    return [f"{name}: {error}" for name, error in failed.items() if name not in offline] + together


def _prepared_lines(found: Mapping[str, "PreparedDataset"], failed: Mapping[str, UserError]) -> list[Line]:
    texts = {
        name: f"{each.samples} samples, list {each.list_digest[:12]}, {each.folder}" for name, each in found.items()
    }
    lines = [Line(f"{name}: {text}") for name, text in texts.items()]
    for name, each in found.items():
        reasons = list(each.unreadable.values())
        lines += [Line(f"{name}: {reason}", "yellow") for reason in reasons[:SHOWN]]
        if len(reasons) > SHOWN:
            lines.append(Line(f"{name}: and {len(reasons) - SHOWN} more images that cannot be decoded", "yellow"))
    return lines + [Line(text, "red") for text in _failures(failed)]


@app.command(epilog=example("vlmbench data weights clip fare-1", "vlmbench data weights agft --track mini"))
def weights(models: _Models, track: TrackName = REAL_TRACK, as_json: Json = False) -> None:
    """Download the weights of models, so that later runs need no network.

    Weights that are already in the cache are not downloaded again.
    """
    from robustbench_vlm.engine.missing import check_hosts
    from robustbench_vlm.models.weights_cache import missing_weights

    missing = [each for model in models for each in missing_weights(model, track)]
    check_hosts(track, missing, is_download=True)
    if missing:
        from robustbench_vlm.models.loading import fetch_all

        with progress("downloaded", quiet=as_json) as on_progress:
            for model in dict.fromkeys(each.model for each in missing):
                fetch_all(model, track, on_progress)
    document = {"track": track, "models": models, "downloaded": [each.file for each in missing]}
    done = f"downloaded {', '.join(each.file for each in missing)}" if missing else "all weights were in the cache"
    answer(document, lambda width: [Line(done)], as_json=as_json)


@app.command(epilog=example("vlmbench data verify cifar10"))
def verify(names: _Names = None, data: DataFolder = None, as_json: Json = False) -> int:
    """Check the files, sample counts and prepared pixels of published datasets.

    Exit code 1: a check fails. If NAME is not given, datasets that are not on disk are skipped.
    """
    from robustbench_vlm.datasets.published.status import verify_dataset

    with progress("datasets", quiet=as_json) as on_progress:
        found = {}
        chosen = _chosen(names)
        for number, name in enumerate(chosen):
            on_progress(Progress(number, len(chosen), label=name))
            found[name] = verify_dataset(name, data, missing_is_wrong=bool(names))
    wrong = [f"{name}: {sentence}" for name, sentences in found.items() for sentence in sentences or ()]
    fine = [name for name, sentences in found.items() if sentences == []]
    lines = [Line(each, "red") for each in wrong]
    lines.append(Line(f"correct: {', '.join(fine) or 'none'}"))
    answer({"passed": not wrong, "checked": found}, lambda width: lines, as_json=as_json)
    return 1 if wrong else 0


def _chosen(names: Sequence[str] | None) -> list[str]:
    from robustbench_vlm.tracks import TRACKS

    return list(names or TRACKS.load(REAL_TRACK).datasets)


def _extra() -> list[str]:
    from robustbench_vlm.datasets.published import PUBLISHED

    listed = _chosen(None)
    return [name for name in PUBLISHED if name not in listed]


def _status_lines(found: Sequence["DatasetStatus"], width: int) -> list[Line]:
    rows = [
        {
            "dataset": each.name,
            "samples": str(each.samples),
            "on disk": str(each.on_disk or "-"),
            "prepared": str(each.prepared or "-"),
            "download": _size(each.download_bytes),
            "missing": "" if each.on_disk else each.where,
        }
        for each in found
    ]
    return table(rows, Columns((), "dataset", ("samples", "on disk", "prepared", "download"), "missing"), width)


def _source_lines(found: Sequence["DatasetStatus"]) -> list[Line]:
    """Return two lines of text for each dataset that is not on disk.

    The first line lists its download sources in the order in which they are tried. The second explains how to download
    the dataset by hand.
    """
    lines = []
    for each in found:
        if each.sources and not each.on_disk:
            lines += [Line(f"{each.name}: {', then '.join(each.sources)}"), Line(f"  by hand: {each.by_hand}")]
    return [Line(""), *lines] if lines else []


def _size(count: int) -> str:
    if not count:
        return "?"
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.0f} MiB"
