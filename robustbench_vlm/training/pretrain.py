"""Contrastive pre-training of a small CLIP on captioned scenes (Radford et al., ICML 2021, arXiv 2103.00020).

Two things differ from CLIP: each image has several captions, and one that happens to be true of another picture of
the batch is not counted as its negative. In a world of few attributes that is the rule and not the exception.
"""

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_vlm.core import random as randomness
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import write_whole
from robustbench_vlm.core.progress import OnProgress, Progress
from robustbench_vlm.datasets.world.captions import describe, is_true_of
from robustbench_vlm.datasets.world.drawing import draw
from robustbench_vlm.datasets.world.scenes import FAMILIES, Scenes, sample_scenes
from robustbench_vlm.models import card_names
from robustbench_vlm.models.card import ModelCard, find_card, write_card
from robustbench_vlm.models.image_encoder import ImageEncoder
from robustbench_vlm.models.open_clip import Architecture, load_architecture
from robustbench_vlm.models.reference import ModelName, parse_reference
from robustbench_vlm.models.text_encoder import tokenize
from robustbench_vlm.models.weights import save_weights, split_towers
from robustbench_vlm.tracks import TRACKS, Track

_MIXTURE = {"single": 5, "several": 1, "pair": 2, "digit": 2}
_OFTEN_PLAIN = {"outline": (0, 0, 0, 0, 0, 0, 1), "faint": (0, 0, 0, 0, 0, 0, 1)}
_CHUNK = 512
_MAX_LOG_SCALE = math.log(100)


@dataclass(frozen=True)
class Settings:
    """How to pre-train; `images` are drawn ahead and shown `epochs` times, with fresh captions each time."""

    pictures: int = 245_760
    epochs: int = 8
    captions: int = 2
    """Captions an image in each step."""
    batch: int = 192
    rate: float = 2e-3
    decay: float = 0.05
    warmup: int = 200
    seed: int = 0
    save_every: int = 200

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.epochs * (self.pictures // self.batch)


@dataclass(frozen=True)
class Pictures:
    """Drawn scenes: `images` uint8 (N, 3, 32, 32), with their `scenes`."""

    images: Tensor
    scenes: Scenes

    def __getitem__(self, rows: Tensor) -> "Pictures":
        return Pictures(self.images[rows], Scenes(self.scenes.attributes[rows], self.scenes.keys[rows]))


def pretrain_base(track_name: str, folder: Path, on_progress: OnProgress, settings: Settings | None = None) -> Path:
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
    pretrain(network, architecture, settings, folder, on_progress)
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


def _released(track: Track) -> str:
    """Return which of open_clip's pre-trained models a track's base is; empty where it is none."""
    is_known = not isinstance(parse_reference(track.base).model, ModelName) or track.base in card_names(track.name)
    card = find_card(track.base, track.name) if is_known else None
    return f"{card.architecture}/{card.pretrained}" if card and card.pretrained else ""


def contrastive_loss(image_features: Tensor, text_features: Tensor, scale: Tensor, is_true: Tensor) -> Tensor:
    """Return the symmetric InfoNCE loss of a batch, without the negatives that are true.

    Features are unit vectors (B, D); `is_true[i, j]` says that caption j is true of image i, bool (B, B).
    """
    logits = scale * image_features @ text_features.T
    false_negative = is_true & ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(false_negative, -torch.inf)
    target = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def draw_pictures(settings: Settings, folder: Path) -> Pictures:
    """Draw the training images, or map them into memory where `folder` holds them already."""
    file = folder / f"pictures-{settings.seed}-{settings.pictures}.pt"
    if not file.exists():
        chunks = [_draw_chunk(settings, start) for start in range(0, settings.pictures, _CHUNK)]
        pool = [torch.cat(part) for part in zip(*chunks, strict=True)]
        write_whole(file, lambda partial: torch.save(pool, partial))
    images, attributes, keys = torch.load(file, weights_only=True, mmap=True)
    return Pictures(images, Scenes(attributes, keys))


def pretrain(
    network: nn.Module,
    architecture: Architecture,
    settings: Settings,
    folder: Path,
    on_progress: OnProgress,
) -> None:
    """Train an open_clip CLIP in place; a run that was killed goes on from its last checkpoint in `folder`."""
    pictures = draw_pictures(settings, folder)
    encoder = ImageEncoder(network.get_submodule("visual"), architecture)
    optimizer = torch.optim.AdamW(_groups(network, settings), lr=settings.rate, betas=(0.9, 0.98), fused=True)
    checkpoint = folder / "checkpoint.pt"
    first = _resume(network, optimizer, checkpoint)
    network.train()
    started = time.monotonic()
    for step in range(first, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = _rate(settings, step)
        loss = _loss(network, encoder, pictures[_rows(settings, step)], (step, settings.captions))
        if not torch.isfinite(loss):
            raise UserError(f"the loss is {loss.item()} at step {step}; the last good checkpoint is {checkpoint}")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            network.get_parameter("logit_scale").clamp_(0, _MAX_LOG_SCALE)
        if (step + 1) % 20 == 0:
            pace = (time.monotonic() - started) / (step + 1 - first)
            left = pace * (settings.steps - step - 1)
            on_progress(Progress(step + 1, settings.steps, left, f"loss {loss.item():.3f}"))
        if (step + 1) % settings.save_every == 0:
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            write_whole(checkpoint, lambda partial, state=state: torch.save(state, partial))  # type: ignore[misc]
    network.eval()


def _draw_chunk(settings: Settings, start: int) -> tuple[Tensor, Tensor, Tensor]:
    families = [family for family in FAMILIES for _ in range(_MIXTURE[family])]
    ids = [str(number) for number in range(start, min(start + _CHUNK, settings.pictures))]
    keys = randomness.sample_keys(settings.seed, "pretraining", ids)
    scenes = sample_scenes(keys, families[start // _CHUNK % len(families)], _OFTEN_PLAIN, [])
    return draw(scenes), scenes.attributes, scenes.keys


def _loss(network: nn.Module, encoder: ImageEncoder, pictures: Pictures, turn: tuple[int, int]) -> Tensor:
    step, captions = turn
    spoken = [describe(pictures.scenes, captions * step + number) for number in range(captions)]
    tokens = tokenize([text for texts, _ in spoken for text in texts], encoder.architecture)
    unique, where = torch.unique(tokens, dim=0, return_inverse=True)
    texts = network.encode_text(unique, normalize=True)[where].chunk(captions)  # type: ignore[operator]
    images = functional.normalize(encoder(pictures.images.to(torch.float32) / 255), dim=-1)
    scale = network.get_parameter("logit_scale").exp()
    truths = [is_true_of(pictures.scenes, mentions) for _, mentions in spoken]
    losses = [contrastive_loss(images, text, scale, truth) for text, truth in zip(texts, truths, strict=True)]
    return torch.stack(losses).mean()


def _groups(network: nn.Module, settings: Settings) -> list[dict[str, object]]:
    matrices = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": settings.decay}, {"params": others, "weight_decay": 0.0}]


def _resume(network: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path) -> int:
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, weights_only=True)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _rows(settings: Settings, step: int) -> Tensor:
    epoch, index = divmod(step, settings.pictures // settings.batch)
    order = torch.randperm(settings.pictures, generator=torch.Generator().manual_seed(settings.seed + epoch))
    return order[index * settings.batch : (index + 1) * settings.batch]


def _rate(settings: Settings, step: int) -> float:
    warm = min(1.0, (step + 1) / settings.warmup)
    return settings.rate * warm * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
