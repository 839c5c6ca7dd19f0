"""The request of a user: models, attacks, datasets and eps by name, and the options of a run."""

import dataclasses
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

from robustbench_vlm.engine.resources import Resources


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of a run; every combination of models, attacks, eps and datasets is one cell."""

    models: tuple[str, ...]
    """Names on the track, card files (*.json), or open_clip:ARCH/TAG."""
    attacks: tuple[str, ...] = ("autoattack",)
    track: str = "mini"
    datasets: tuple[str, ...] = ()
    """Empty: those of the track."""
    eps: tuple[str | Fraction, ...] = ()
    """Texts such as "4/255", or exact fractions, pixel scale [0, 1]. Empty: the track's standard eps."""
    norm: str = ""
    """"Linf" or "L2". Empty: the track's."""
    protocol: str = ""
    """Empty: the track's first."""
    samples: int | Literal["all"] | None = None
    """Number of samples per dataset, which changes the protocol's name; None: the protocol's number."""
    images: Path | None = None
    """A folder with one sub-folder of images per class, used in place of datasets."""
    prompt: str = "a photo of a {}."
    """The prompt template for the classes of `images`."""
    data: Path | None = None
    """The folder of the published datasets. None: VLMBENCH_DATA, or "data" in the cache folder."""
    skip_unreadable: bool = False
    """Leave out images that cannot be decoded, and count them."""
    out: Path = Path("runs")
    resources: Resources = dataclasses.field(default_factory=Resources)
    """Device, workers, batch size, shard size; no result depends on them."""
    command: str = ""
    """The command line, for the manifest."""
