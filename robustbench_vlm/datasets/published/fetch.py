"""Download published datasets from the sources in `PublishedDataset.sources`. Incomplete downloads are never used."""

import contextlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from robustbench_vlm.core.download_speed import SlowDownload, tell, warn_slow
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.hosts import Hosts, host_of, unreachable_text
from robustbench_vlm.core.hub_access import endpoint
from robustbench_vlm.core.progress import OnProgress, ignore_progress
from robustbench_vlm.datasets.published.base import DownloadSource, MissingData, PublishedDataset
from robustbench_vlm.datasets.published.hub import NoAnswer, fetch_from_hub, hub_folder
from robustbench_vlm.datasets.published.local_copy import locate
from robustbench_vlm.datasets.published.staging import exclusive, staging_folder
from robustbench_vlm.datasets.published.torchvision import fetch_from_torchvision

_FETCHERS: Mapping[str, Callable[..., Path]] = {"hub": fetch_from_hub, "original": fetch_from_torchvision}
"""The function that downloads from each kind of source. The keys are values of `DownloadSource.kind`."""


class NoSourceReachable(UserError):
    """Raised if no host of a dataset's sources can be reached."""

    def __init__(self, published: PublishedDataset, root: Path, hosts: Mapping[str, str]) -> None:
        self.hosts = hosts
        """The reason why each host cannot be reached. The keys are the hosts."""
        self.by_hand = by_hand(published, root)
        super().__init__(
            f"cannot fetch {published.title}: {unreachable_text(hosts)}. When the network works, run `vlmbench data"
            f" prepare {published.name}`. To fetch it by hand: {self.by_hand}"
        )


def address_of(source: DownloadSource) -> str:
    """Return an address on the host of a source."""
    return source.host or endpoint()


def _host(source: DownloadSource) -> str:
    return host_of(address_of(source))


def by_hand(published: PublishedDataset, root: Path) -> str:
    """Return the instructions for a download by hand, as the end of a sentence such as "To fetch it by hand: ..."."""
    ways = []
    if published.hub and not published.hub.split and not published.licensed:
        folder = hub_folder(published.hub, root)
        ways.append(
            f'`hf download {published.hub.name} --repo-type dataset --exclude "train/*" --local-dir {folder}` on a'
            " machine with a network"
        )
    page = f"{published.by_hand}, below {root}" if published.by_hand else ""
    return "; or ".join([*ways, page or f"get the files of {published.origin} as the folder {root / published.folder}"])


def fetch(
    published: PublishedDataset, root: Path, on_progress: OnProgress = ignore_progress, hosts: Hosts | None = None
) -> Path:
    """Download a dataset below the data root and return its folder. An existing copy is kept.

    The sources are tried in the order of `PublishedDataset.sources`. The next source is tried if a source fails, if its
    files are not those of the dataset, or if it is slow and the next source has the same samples. A message on stderr
    reports each change of the source. If all sources are slow, the fastest one is used.

    The unit of `on_progress` is bytes. A later call continues an interrupted download. `hosts` has the results of
    earlier checks of hosts. Raises NoSourceReachable if no host can be reached, and UserError with instructions for a
    download by hand if no source works.
    """
    if not published.fetchable:
        return locate(published, root)[0]
    with exclusive(staging_folder(published, root)):
        with contextlib.suppress(MissingData):
            folder = locate(published, root)[0]
            shutil.rmtree(staging_folder(published, root), ignore_errors=True)
            return folder
        hosts = hosts or Hosts()
        down = hosts.unreachable(map(address_of, published.sources))
        usable = [source for source in published.sources if _host(source) not in down]
        if not usable:
            raise NoSourceReachable(published, root, down)
        if len(usable) < len(published.sources):
            tell(f"{published.title}: {unreachable_text(down)}")
        return _fetch_first(published, usable, root, on_progress, hosts)


def _fetch_first(
    published: PublishedDataset, sources: Sequence[DownloadSource], root: Path, on_progress: OnProgress, hosts: Hosts
) -> Path:
    failures: list[str] = []
    slow: list[tuple[float, DownloadSource]] = []
    for source, following in zip(sources, [*sources[1:], None], strict=True):
        # A slow source is kept if the next source has other samples.
        may_switch = following is not None and following.split == source.split
        try:
            on_slow = _stop if may_switch or slow else warn_slow
            return _FETCHERS[source.kind](published, source, root, on_progress, on_slow)
        except SlowDownload as error:
            slow.append((error.rate, source))
            problem = str(error)
        except UserError as error:
            failures.append(problem := str(error))
            if isinstance(error, NoAnswer):
                hosts.mark_unreachable(address_of(source), "it gives no valid answer")
        if following:
            tell(f"{published.title}: {problem}. The next source is tried: {following.name} on {_host(following)}")
    if slow:
        source = max(slow, key=lambda each: each[0])[1]
        tell(f"{published.title}: no other source is faster, so {source.name} on {_host(source)} is used")
        return _FETCHERS[source.kind](published, source, root, on_progress, warn_slow)
    raise UserError(
        f"cannot fetch {published.title}: {'; then: '.join(failures)}. To try again, run `vlmbench data prepare"
        f" {published.name}`. To fetch it by hand: {by_hand(published, root)}"
    )


def _stop(slow: SlowDownload) -> None:
    raise slow
