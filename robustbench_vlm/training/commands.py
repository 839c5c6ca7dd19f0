"""What the commands `pretrain` and `train` do: from names to weights with their cards."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import explained
from robustbench_vlm.core.progress import Tell
from robustbench_vlm.core.records import plain
from robustbench_vlm.models import card_names
from robustbench_vlm.models.architecture import OPEN_CLIP, load_architecture
from robustbench_vlm.models.card import ModelCard, Weights, find_card, write_card
from robustbench_vlm.models.tower_files import copy_weights, save_weights, split_towers
from robustbench_vlm.tracks import TRACKS, Track
from robustbench_vlm.training.finetune import Place, finetune
from robustbench_vlm.training.job import Job
from robustbench_vlm.training.log import plot_log, read_log
from robustbench_vlm.training.pretrain import Settings, pretrain
from robustbench_vlm.training.request import Order, make_job


def pretrain_base(track_name: str, folder: Path, tell: Tell, settings: Settings | None = None) -> Path:
    """Pre-train a track's base model and write its weights and card into `folder`; return the card's path.

    The same command goes on where an earlier one was stopped. Raises UserError where the base is one of open_clip's.
    """
    settings = settings or Settings()
    track: Track = TRACKS.load(track_name)
    if released := _released(track):
        raise UserError(
            f"the base of the track {track.name!r} is pre-trained already, it is {released}: train a defense of it by"
            f" `vlmbench train DEFENSE --track {track.name} --images DIR`"
        )
    architecture = load_architecture(track.architecture)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    network = architecture.build()
    pretrain(network, architecture, settings, folder, tell)
    image, text = split_towers(network)
    card = ModelCard(
        name=track.base,
        architecture=track.architecture,
        image=save_weights(image, folder / f"{track.base}.safetensors"),
        text=save_weights(text, folder / "text.safetensors"),
        training={"recipe": "contrastive pre-training", **dataclasses.asdict(settings), "steps": settings.steps},
        paper="https://arxiv.org/abs/2103.00020",
        licence="MIT",
        notes="undefended",
    )
    write_card(card, folder / f"{track.base}.json")
    return folder / f"{track.base}.json"


def train_defense(order: Order, place: Place, tell: Tell, *, resume: bool | None = None) -> Path | None:
    """Fine-tune a base model by a defense's recipe into a folder; return the new card's path, None on a helper process.

    A training that was stopped goes on: `resume` asks for that, False forbids it, None allows it. Raises UserError for
    unknown names and settings, and where there is nothing to resume.
    """
    checkpoint = place.folder / "checkpoint.pt"
    if resume and not checkpoint.exists():
        raise UserError(f"there is nothing to go on from in {place.folder}: train without --resume, or name its folder")
    with explained(place.folder):
        place.folder.mkdir(parents=True, exist_ok=True)
    job = make_job(order)
    if resume is False and place.processes.is_main:
        checkpoint.unlink(missing_ok=True)
    place.processes.wait()
    visual, seconds = finetune(job, place, tell)
    if not place.processes.is_main:
        return None
    plot_log(read_log(place.folder / "log.csv"), place.folder / "curves.png", job.defense.name)
    return _write_card(order, job, visual.state_dict(), place.folder, round(seconds, 1))


def _write_card(order: Order, job: Job, tower: Mapping[str, Tensor], folder: Path, seconds: float) -> Path:
    track: Track = TRACKS.load(order.track)
    parent = job.model.card
    assert parent
    card = ModelCard(
        name=order.name,
        architecture=parent.architecture,
        image=save_weights(tower, folder / f"{order.name}.safetensors", track.stored),
        text=_text(job, folder),
        defense=job.defense.name,
        training={"track": track.name, **plain(job.account), "seconds": seconds, "fingerprint": job.identity},
        paper=job.defense.paper,
        licence=parent.licence,
        notes=f"fidelity: {job.defense.fidelity}",
        mean=parent.mean,
        std=parent.std,
    )
    write_card(card, folder / f"{order.name}.json")
    return folder / f"{order.name}.json"


def _released(track: Track) -> str:
    """Return which of open_clip's pre-trained models a track's base is; empty where it is none."""
    named = track.base.startswith(OPEN_CLIP) or track.base in card_names(track.name)
    card = find_card(track.base, track.name) if named else None
    return f"{card.architecture}/{card.pretrained}" if card and card.pretrained else ""


def _text(job: Job, folder: Path) -> Weights:
    card = job.model.card
    if card and card.text and card.text.is_bundled:
        return copy_weights(Path(card.folder) / card.text.file, folder)
    return save_weights(split_towers(job.model.network)[1], folder / "text.safetensors")
