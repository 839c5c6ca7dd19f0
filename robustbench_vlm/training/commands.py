"""What the commands `pretrain` and `train` do: from names to weights with their cards."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.defenses import DEFENSES
from robustbench_vlm.defenses.defense import Defense
from robustbench_vlm.errors import UserError
from robustbench_vlm.files import sha256_of, write_whole
from robustbench_vlm.models.architecture import load_architecture
from robustbench_vlm.models.card import ModelCard, Weights, write_card
from robustbench_vlm.models.clip import load_model
from robustbench_vlm.records import fingerprint
from robustbench_vlm.registry import unknown
from robustbench_vlm.tracks import TRACKS, Track
from robustbench_vlm.training.finetuning import Job, finetune
from robustbench_vlm.training.pretraining import Settings, pretrain

Tell = Callable[[str], object]
"""Takes a line of progress, a JSON object with step, of, loss and seconds_left."""


@dataclass(frozen=True)
class Order:
    """What a person asked of `train`: None takes the track's setting."""

    defense: str
    track: str
    eps: Fraction | None = None
    epochs: int | None = None
    pictures: int | None = None
    seed: int = 0
    settings: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Numbers of the defense or "rate", by name."""


def pretrain_base(track_name: str, folder: Path, tell: Tell, settings: Settings | None = None) -> Path:
    """Pre-train a track's base model and write its weights and card into `folder`; return the card's path.

    The same command goes on where an earlier one was stopped.
    """
    settings = settings or Settings()
    track: Track = TRACKS.load(track_name)
    architecture = load_architecture(track.architecture)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    network = architecture.build()
    pretrain(network, architecture, settings, folder, tell)
    state = {key: value.contiguous() for key, value in network.state_dict().items() if key != "attn_mask"}
    image = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    text = {key: value for key, value in state.items() if not key.startswith("visual.")}
    card = ModelCard(
        name=track.base,
        architecture=track.architecture,
        image=_save(image, folder / f"{track.base}.safetensors"),
        text=_save(text, folder / "text.safetensors"),
        training={"recipe": "contrastive pre-training", **dataclasses.asdict(settings), "steps": settings.steps},
        paper="https://arxiv.org/abs/2103.00020",
        licence="MIT",
        notes="undefended",
    )
    write_card(card, folder / f"{track.base}.json")
    return folder / f"{track.base}.json"


def train_defense(order: Order, folder: Path, tell: Tell) -> Path:
    """Fine-tune a track's base model by a defense's recipe into `folder`; return the new card's path.

    The same command goes on where an earlier one was stopped. Raises UserError for unknown names and settings.
    """
    job, track = _job(order)
    folder.mkdir(parents=True, exist_ok=True)
    _same_training(folder, job)
    visual = finetune(job, folder, tell)
    parent = job.model.card
    assert parent is not None
    card = dataclasses.replace(
        parent,
        name=order.defense,
        image=_save(visual.state_dict(), folder / f"{order.defense}.safetensors"),
        text=_text_beside(Path(parent.folder) / parent.text.file, folder),
        defense=order.defense,
        training=_account(job, track),
        paper=job.defense.paper,
        notes=f"fidelity: {job.defense.fidelity}",
    )
    write_card(card, folder / f"{order.defense}.json")
    return folder / f"{order.defense}.json"


def _job(order: Order) -> tuple[Job, Track]:
    defense: Defense = DEFENSES.load(order.defense)
    track: Track = TRACKS.load(order.track)
    allowed = {*defense.settings, "rate"}
    for name, value in order.settings.items():
        if name not in allowed:
            raise UserError(unknown(f"setting of {defense.name}", name, sorted(allowed)))
        if not math.isfinite(value):
            raise UserError(f"the setting {name} is {value}: give a finite number")
    own = {name: value for name, value in order.settings.items() if name != "rate"}
    schedule = dataclasses.replace(
        track.schedule,
        rate=order.settings.get("rate", track.rates.get(defense.name, track.schedule.rate)),
        epochs=order.epochs or track.schedule.epochs,
    )
    # The track's budget is equal for all, the passes of the inner attack included.
    inner = dataclasses.replace(defense.inner, **track.inner)
    return Job(
        defense=dataclasses.replace(defense, inner=inner, settings={**defense.settings, **own}),
        schedule=schedule,
        model=load_model(track.base, track.name),
        dataset=DATASETS.load(track.training),
        pictures=order.pictures or track.training_pictures,
        eps=order.eps if order.eps is not None else track.training_eps,
        seed=order.seed,
    ), track


def _account(job: Job, track: Track) -> dict[str, object]:
    return {
        "track": track.name,
        "parent": job.model.name,
        "parent_digest": job.model.digest,
        "dataset": job.dataset.name,
        "pictures": job.pictures,
        "eps": str(job.eps),
        "inner_steps": job.defense.inner.steps,
        "inner_step_size": str(job.defense.inner.step_size),
        "schedule": dataclasses.asdict(job.schedule),
        "steps": job.steps,
        "settings": dict(job.defense.settings),
        "seed": job.seed,
        "fingerprint": _identity(job),
    }


def _identity(job: Job) -> str:
    """Return what decides the weights: a checkpoint of another identity is never resumed."""
    inner = [job.defense.inner.steps, str(job.defense.inner.step_size), job.defense.inner.momentum]
    dataset = [job.dataset.name, job.dataset.revision, job.dataset.prompts, job.pictures]
    return fingerprint(
        [
            job.defense.name,
            dict(job.defense.settings),
            inner,
            job.schedule,
            job.model.digest,
            dataset,
            job.eps,
            job.seed,
        ]
    )


def _same_training(folder: Path, job: Job) -> None:
    note, identity = folder / "training.txt", _identity(job)
    if note.exists() and note.read_text() != identity:
        raise UserError(f"{folder} holds another training, with other settings: name another folder with --out")
    write_whole(note, lambda partial: partial.write_text(identity))


def _save(tensors: dict[str, Tensor], path: Path) -> Weights:
    from safetensors.torch import save_file

    whole = {key: value.detach().contiguous() for key, value in tensors.items()}
    write_whole(path, lambda partial: save_file(whole, partial))
    return Weights(path.name, sha256_of(path))


def _text_beside(source: Path, folder: Path) -> Weights:
    """Put the shared text tower beside a new card; the bundled zoo holds it once."""
    target = folder / source.name
    if not target.exists():
        write_whole(target, lambda partial: partial.write_bytes(source.read_bytes()))
    return Weights(target.name, sha256_of(target))
