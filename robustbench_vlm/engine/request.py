"""Requests: the models, attacks, datasets and eps that a user names, and the options of a run."""

import dataclasses
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

from robustbench_vlm.core.files import user_path
from robustbench_vlm.engine.resources import Resources


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of a run. Each combination of model, attack, eps and dataset is one cell of the result.

    A leading "~" in a path is replaced by the home folder.
    """

    models: tuple[str, ...]
    """Model references: names of models of the track, card files (*.json), or open_clip:ARCH/TAG."""
    attacks: tuple[str, ...] = ("autoattack",)
    """Names of attacks."""
    track: str = "mini"
    datasets: tuple[str, ...] = ()
    """Names of datasets. Empty: the datasets of the protocol or the track."""
    eps: tuple[str | Fraction, ...] = ()
    """Radii as texts such as "4/255" or as fractions, for pixels in [0, 1]. Empty: the track's standard eps."""
    norm: str = ""
    """"Linf" or "L2". Empty: the norm of the track."""
    protocol: str = ""
    """Name of the protocol. Empty: the first protocol of the track."""
    samples: int | Literal["all"] | None = None
    """Number of samples per dataset. None: the number of the protocol. If the number differs from the protocol's, the
    results have another protocol name."""
    images: Path | None = None
    """Folder with one sub-folder of images per class. It is evaluated in place of datasets."""
    prompt: str = "a photo of a {}."
    """Prompt template for the classes of `images`."""
    data: Path | None = None
    """Folder of the published datasets. None: VLMBENCH_DATA, or "data" in the cache folder."""
    skip_unreadable: bool = False
    """If true, images that cannot be decoded are left out and counted. If false, such an image is an error."""
    out: Path = Path("runs")
    """Folder to which the records and scores are written."""
    resources: Resources = dataclasses.field(default_factory=Resources)
    """Device, workers, batch size and shard size. They do not affect the results."""
    command: str = ""
    """Command line of the run, which is written to the manifest."""

    def __post_init__(self) -> None:
        for name in ("images", "data", "out"):
            if (path := getattr(self, name)) is not None:
                object.__setattr__(self, name, user_path(path))
