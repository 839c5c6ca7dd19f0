"""The command `vlmbench pretrain`: trains the base model of a track."""

from robustbench_vlm.cli.options import DEFAULT_TRACK, Json, TrackName
from robustbench_vlm.cli.render.progress_bar import progress
from robustbench_vlm.cli.train import ModelFolder, show_card


def pretrain(track: TrackName = DEFAULT_TRACK, out: ModelFolder = None, as_json: Json = False) -> None:
    """Pre-train the base model of a track.

    If the command is stopped, run it again to resume.
    """
    from robustbench_vlm.models.card import trained_folder
    from robustbench_vlm.training.pretrain import pretrain_base

    with progress("steps", quiet=as_json) as on_progress:
        card = pretrain_base(track, out or trained_folder(track, "base"), on_progress)
    show_card(card, as_json=as_json)
