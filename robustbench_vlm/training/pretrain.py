"""Contrastive pre-training of a small CLIP on captioned scenes (Radford et al., ICML 2021, arXiv 2103.00020).

Two things differ from CLIP. Each image has several captions in each step. A caption that is also true of another image
of the batch is not a negative of that image: scenes have few attributes, so that such captions are common.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_vlm.core import random as randomness
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import write_whole
from robustbench_vlm.core.fingerprint import fingerprint
from robustbench_vlm.core.progress import OnProgress
from robustbench_vlm.datasets.world.captions import describe, is_true_of
from robustbench_vlm.datasets.world.drawing import draw
from robustbench_vlm.datasets.world.scenes import FAMILIES, Scenes, sample_scenes
from robustbench_vlm.defenses.base import Schedule
from robustbench_vlm.models import card_names
from robustbench_vlm.models.card import ModelCard, find_card, write_card
from robustbench_vlm.models.image_encoder import ImageEncoder
from robustbench_vlm.models.open_clip import Architecture, load_architecture
from robustbench_vlm.models.reference import ModelName, parse_reference
from robustbench_vlm.models.text_encoder import tokenize
from robustbench_vlm.models.weights import save_weights, split_encoders
from robustbench_vlm.tracks import TRACKS, Track
from robustbench_vlm.training.checkpoint import Checkpoint
from robustbench_vlm.training.data import shuffled
from robustbench_vlm.training.log import Recorder
from robustbench_vlm.training.optim import clip_gradients, lr_at, make_optimizer, set_lr

VERSION = 1
"""Version of pre-training. Raise it whenever a change of the code can change the pre-trained weights."""
_MIXTURE = {"single": 5, "several": 1, "pair": 2, "digit": 2}
"""Relative number of the scenes of each family."""
_OFTEN_PLAIN = {"outline": (0, 0, 0, 0, 0, 0, 1), "faint": (0, 0, 0, 0, 0, 0, 1)}
_CHUNK = 512
_MAX_LOG_SCALE = math.log(100)


@dataclass(frozen=True)
class PretrainingSettings:
    """Settings of pre-training; the card of the base model lists them.

    The images are drawn once and used in every epoch, with new captions in every step.
    """

    images: int = 245_760
    epochs: int = 8
    captions: int = 2
    """Captions of an image in each step."""
    batch_size: int = 192
    lr: float = 2e-3
    weight_decay: float = 0.05
    """Of matrices only."""
    warmup: int = 200
    seed: int = 0
    save_every: int = 200
    """Steps from one checkpoint to the next; does not change the weights."""

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.epochs * (self.images // self.batch_size)

    @property
    def schedule(self) -> Schedule:
        """The optimizer and the learning rate of each step."""
        return Schedule(
            "clip-adamw",
            lr=self.lr,
            weight_decay=self.weight_decay,
            batch_size=self.batch_size,
            warmup=self.warmup,
            epochs=self.epochs,
            cosine="product",
        )

    @property
    def account(self) -> Mapping[str, Any]:
        """All settings that decide the weights, by name."""
        settings = dataclasses.asdict(self)
        del settings["save_every"]
        return {"recipe": "contrastive pre-training", "version": VERSION, **settings}


@dataclass(frozen=True)
class CaptionedScenes:
    """Drawn scenes: `images` uint8 (N, 3, 32, 32), and the `scenes` from which captions are made."""

    images: Tensor
    scenes: Scenes

    def __getitem__(self, rows: Tensor) -> "CaptionedScenes":
        return CaptionedScenes(self.images[rows], Scenes(self.scenes.attributes[rows], self.scenes.keys[rows]))


def pretrain_base(
    track_name: str, folder: Path, on_progress: OnProgress, settings: PretrainingSettings | None = None
) -> Path:
    """Pre-train a track's base model and write its weights and card into `folder`; return the card's path.

    A training that was stopped continues. Raises UserError if the base model is pre-trained already, or if the folder
    holds a checkpoint of other settings.
    """
    settings = settings or PretrainingSettings()
    track: Track = TRACKS.load(track_name)
    if released := _released(track):
        raise UserError(
            f"the base model of the track {track.name!r} is pre-trained already, it is {released}: train a defense of"
            f" it by `vlmbench train DEFENSE --track {track.name} --images DIR`"
        )
    architecture = load_architecture(track.architecture)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    network = architecture.build()
    pretrain(network, architecture, settings, folder, on_progress)
    image, text = split_encoders(network)
    card = ModelCard(
        name=track.base,
        architecture=track.architecture,
        image=save_weights(image, folder / f"{track.base}.safetensors"),
        text=save_weights(text, folder / "text.safetensors"),
        training=card_training(settings),
        paper="https://arxiv.org/abs/2103.00020",
        licence="MIT",
        notes="undefended",
    )
    write_card(card, folder / f"{track.base}.json")
    return folder / f"{track.base}.json"


def card_training(settings: PretrainingSettings) -> dict[str, Any]:
    """Return the entry `training` of the base model's card."""
    return {"recipe": "contrastive pre-training", **dataclasses.asdict(settings), "steps": settings.steps}


def _released(track: Track) -> str:
    """Return the pre-trained model of open_clip that is the track's base; "" if the base is not one of these."""
    is_known = not isinstance(parse_reference(track.base).model, ModelName) or track.base in card_names(track.name)
    card = find_card(track.base, track.name) if is_known else None
    return f"{card.architecture}/{card.pretrained}" if card and card.pretrained else ""


def pretrain(
    network: nn.Module,
    architecture: Architecture,
    settings: PretrainingSettings,
    folder: Path,
    on_progress: OnProgress,
) -> None:
    """Train an open_clip CLIP in place; a training that was stopped continues from the checkpoint in `folder`.

    Raises UserError for a checkpoint of other settings, and Diverged if the loss or a weight is not finite.
    """
    identity = fingerprint([settings.account, architecture])
    schedule = settings.schedule
    optimizer = make_optimizer(network, schedule)
    checkpoint = Checkpoint(folder / "checkpoint.pt", identity)
    recorder = Recorder(checkpoint, settings.steps, settings.save_every, folder / "log.csv", on_progress)
    first = recorder.begin(network, optimizer)
    data = draw_scenes(settings, folder)
    encoder = ImageEncoder(network.get_submodule("visual"), architecture)
    network.train()
    for step in range(first, settings.steps):
        set_lr(optimizer, lr_at(schedule, settings.steps, step))
        loss = _loss(network, encoder, data[_rows(settings, step)], step, settings.captions)
        optimizer.zero_grad()
        loss.backward()
        clip_gradients(network.parameters(), schedule)
        optimizer.step()
        with torch.no_grad():
            network.get_parameter("logit_scale").clamp_(0, _MAX_LOG_SCALE)
        recorder.record(step, loss.item(), {})
    network.eval()


def draw_scenes(settings: PretrainingSettings, folder: Path) -> CaptionedScenes:
    """Draw the training images, or map them into memory if `folder` already holds those of these settings."""
    identity = fingerprint([VERSION, settings.images, settings.seed, _MIXTURE, _OFTEN_PLAIN])
    file = folder / f"scenes-{identity[:16]}.pt"
    if not file.exists():
        chunks = [_draw_chunk(settings, start) for start in range(0, settings.images, _CHUNK)]
        tensors = [torch.cat(part) for part in zip(*chunks, strict=True)]
        write_whole(file, lambda partial: torch.save(tensors, partial))
    images, attributes, keys = torch.load(file, weights_only=True, mmap=True)
    return CaptionedScenes(images, Scenes(attributes, keys))


def contrastive_loss(image_features: Tensor, text_features: Tensor, scale: Tensor, is_true: Tensor) -> Tensor:
    """Return the symmetric InfoNCE loss of a batch, without negatives that are true captions of the image.

    Features are unit vectors (B, D); `is_true[i, j]` says that caption j is true of image i, bool (B, B).
    """
    logits = scale * image_features @ text_features.T
    false_negative = is_true & ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(false_negative, -torch.inf)
    target = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def _draw_chunk(settings: PretrainingSettings, start: int) -> tuple[Tensor, Tensor, Tensor]:
    families = [family for family in FAMILIES for _ in range(_MIXTURE[family])]
    ids = [str(number) for number in range(start, min(start + _CHUNK, settings.images))]
    keys = randomness.sample_keys(settings.seed, "pretraining", ids)
    scenes = sample_scenes(keys, families[start // _CHUNK % len(families)], _OFTEN_PLAIN, [])
    return draw(scenes), scenes.attributes, scenes.keys


def _loss(network: nn.Module, encoder: ImageEncoder, batch: CaptionedScenes, step: int, captions: int) -> Tensor:
    """Return the mean contrastive loss over the captions of a step."""
    described = [describe(batch.scenes, captions * step + number) for number in range(captions)]
    tokens = tokenize([text for texts, _ in described for text in texts], encoder.architecture)
    unique, index = torch.unique(tokens, dim=0, return_inverse=True)
    texts = network.encode_text(unique, normalize=True)[index].chunk(captions)  # type: ignore[operator]
    images = functional.normalize(encoder(batch.images.to(torch.float32) / 255), dim=-1)
    scale = network.get_parameter("logit_scale").exp()
    truths = [is_true_of(batch.scenes, mentions) for _, mentions in described]
    losses = [contrastive_loss(images, text, scale, truth) for text, truth in zip(texts, truths, strict=True)]
    return torch.stack(losses).mean()


def _rows(settings: PretrainingSettings, step: int) -> Tensor:
    epoch, index = divmod(step, settings.images // settings.batch_size)
    order = shuffled(settings.images, settings.seed + epoch)
    return order[index * settings.batch_size : (index + 1) * settings.batch_size]
