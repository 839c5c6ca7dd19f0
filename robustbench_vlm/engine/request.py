"""Requests: the models, attacks, datasets and eps that a user names, and the options of a run."""

import dataclasses
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

from robustbench_vlm.core.files import user_path
from robustbench_vlm.core.threat import norm_named
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.protocols import IMAGE_PROTOCOL
from robustbench_vlm.tracks import DEFAULT_TRACK, TRACKS

DEFAULT_PROMPT = "a photo of a {}."
"""Prompt template for a user's own images."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of a run. Each combination of model, attack, eps and dataset is one cell of the result.

    A leading "~" in a path is replaced by the home folder.
    """

    models: tuple[str, ...]
    """Model references: names of models of the track, card files (*.json), or open_clip:ARCH/TAG."""
    attacks: tuple[str, ...] = ("autoattack",)
    """Names of attacks."""
    track: str = ""
    """Name of the track. If it is empty, the track `DEFAULT_TRACK` is used."""
    datasets: tuple[str, ...] = ()
    """Names of datasets. If it is empty, the datasets of the protocol or the track are used."""
    eps: tuple[str | Fraction, ...] = ()
    """Radii as texts such as "4/255" or as fractions, for pixels in [0, 1]. If it is empty, the radii of the protocol
    are used. If the protocol does not set radii, the track's standard eps is used.
    """
    norm: str = ""
    """"Linf" or "L2". If it is empty, the norm of the track is used."""
    protocol: str = ""
    """Name of the protocol. If it is empty, the first protocol of the track is used. There is one exception: for a
    folder of images without a track, it is the protocol `IMAGE_PROTOCOL`.
    """
    samples: int | Literal["all"] | None = None
    """Number of samples per dataset. None means the protocol's number. Any other number changes the name of the
    protocol in the results.
    """
    images: Path | None = None
    """Folder with one sub-folder of images per class. It is evaluated in place of datasets."""
    prompt: str = ""
    """Prompt template for the classes of `images`. If it is empty, `DEFAULT_PROMPT` is used."""
    data: Path | None = None
    """Folder of the published datasets. If it is None, the folder is VLMBENCH_DATA, or "data" in the cache folder."""
    skip_unreadable: bool = False
    """If true, images that cannot be decoded are left out and counted. If false, such an image is an error."""
    half_width: float = 0.0
    """Largest allowed half-width of the interval of the mean robust accuracy, in [0, 1]. If it is positive, the run is
    estimated: it attacks only as many samples in full as this half-width requires. If it is 0, all samples are attacked
    in full."""
    draws: int = 0
    """Number of fresh draws with which a random model classifies each image. If it is 0, the protocol decides."""
    eot: int = 0
    """Number of draws of which the attacks take the mean gradient. If it is 0 and `draws` is not, it is
    `protocols.base.DEFAULT_EOT`."""
    out: Path = Path("runs")
    """Folder to which the records and scores are written."""
    resources: Resources = dataclasses.field(default_factory=Resources)
    """Device, workers, batch size and shard size. They do not affect the results."""
    command: str = ""
    """Command line of the run. It is written to the manifest."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", norm_named(self.norm))
        for name in ("images", "data", "out"):
            if (path := getattr(self, name)) is not None:
                object.__setattr__(self, name, user_path(path))

    @property
    def track_name(self) -> str:
        """The name of the track."""
        return self.track or DEFAULT_TRACK

    @property
    def protocol_name(self) -> str:
        """The name of the protocol. Raises UserError if the track is unknown."""
        if self.protocol:
            return self.protocol
        own_images = self.images is not None and not self.track
        return IMAGE_PROTOCOL if own_images else str(TRACKS.load(self.track_name).protocols[0])
