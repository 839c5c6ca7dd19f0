"""Contrastive pre-training of a small CLIP on images with captions (Radford et al., ICML 2021, arXiv 2103.00020).

This training differs from CLIP's training in two ways. First, each image has several captions in each step. Second, a
caption of one image that is also true for another image is not used as a negative of that other image. Such captions
are common, because the scenes in the images have few attributes.
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
from robustbench_vlm.core.files import explained
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
from robustbench_vlm.training.optim import lr_at, make_optimizer, set_lr, take_step
from robustbench_vlm.training.tensor_files import load_tensors, save_tensors

VERSION = 1
"""Version of pre-training. Increase it if a change of the code can change the pre-trained weights."""
_MIXTURE = {"single": 5, "several": 1, "pair": 2, "digit": 2}
"""Proportions of the training images: the relative number of images of each family of scenes."""
_OFTEN_PLAIN = {"outline": (0, 0, 0, 0, 0, 0, 1), "faint": (0, 0, 0, 0, 0, 0, 1)}
_CHUNK = 512
_MAX_LOG_SCALE = math.log(100)


@dataclass(frozen=True)
class PretrainingSettings:
    """The settings of pre-training. The card of the base model lists these settings.

    The images are generated once and used in every epoch. New captions for the images are generated in every step.
    """

    images: int = 245_760
    epochs: int = 8
    captions: int = 2
    """The number of captions for each image in a step."""
    batch_size: int = 192
    lr: float = 2e-3
    weight_decay: float = 0.05
    """The weight decay of matrices. For other parameters, the weight decay is 0."""
    warmup: int = 200
    seed: int = 0
    save_every: int = 200
    """The number of steps from one checkpoint to the next. The weights do not depend on this number."""

    def __post_init__(self) -> None:
        if self.warmup >= self.steps:
            raise UserError(
                f"the warm-up of {self.warmup} steps is not shorter than the pre-training of {self.steps} steps: give a"
                " shorter warm-up, more epochs or more images"
            )

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.epochs * (self.images // self.batch_size)

    @property
    def schedule(self) -> Schedule:
        """The optimizer and learning rate schedule of pre-training."""
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
        """All settings that decide the weights, and the version of pre-training. The keys are the settings' names."""
        settings = dataclasses.asdict(self)
        del settings["save_every"]
        return {"recipe": "contrastive pre-training", "version": VERSION, **settings}


@dataclass(frozen=True)
class CaptionedScenes:
    """N training images and the scenes that they show."""

    images: Tensor
    """uint8 (N, 3, 32, 32)."""
    scenes: Scenes
    """The N scenes. Captions are generated from these scenes."""

    def __getitem__(self, rows: Tensor) -> "CaptionedScenes":
        return CaptionedScenes(self.images[rows], Scenes(self.scenes.attributes[rows], self.scenes.keys[rows]))


def pretrain_base(
    track_name: str, folder: Path, on_progress: OnProgress, settings: PretrainingSettings | None = None
) -> Path:
    """Pre-train the base model of a track and write its weights and card into a folder. Return the path of the card.

    The training continues from the checkpoint in the folder, if there is one. Raises UserError if public weights of the
    base model exist, or if the checkpoint has other settings.
    """
    settings = settings or PretrainingSettings()
    track: Track = TRACKS.load(track_name)
    if released := _released(track):
        raise UserError(
            f"the base model of the track {track.name!r} is {released}, which is pre-trained already: train a defense"
            f" with `vlmbench train DEFENSE --track {track.name} --images DIR`"
        )
    architecture = load_architecture(track.architecture)
    with explained(folder):
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
    """Return the value of the field `training` in the base model's card."""
    return {"recipe": "contrastive pre-training", **dataclasses.asdict(settings), "steps": settings.steps}


def _released(track: Track) -> str:
    """Return open_clip's name for the base model of a track.

    If open_clip does not have weights for this model, return "".
    """
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
    """Pre-train an open_clip model in place.

    The training continues from the checkpoint in `folder`, if there is one. Raises UserError if the checkpoint belongs
    to other settings, and Diverged if the loss or a weight is not finite.
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
        fits = take_step(optimizer, schedule)
        with torch.no_grad():
            network.get_parameter("logit_scale").clamp_(0, _MAX_LOG_SCALE)
        recorder.record(step, loss.item() if fits else math.inf, {})
    network.eval()


def draw_scenes(settings: PretrainingSettings, folder: Path) -> CaptionedScenes:
    """Open the training images in `folder`. If the folder has no images for these settings, generate and store them."""
    identity = fingerprint([VERSION, settings.images, settings.seed, _MIXTURE, _OFTEN_PLAIN])
    file = folder / f"scenes-{identity[:16]}.pt"
    if not file.exists():
        chunks = [_draw_chunk(settings, start) for start in range(0, settings.images, _CHUNK)]
        tensors = [torch.cat(part) for part in zip(*chunks, strict=True)]
        save_tensors(file, tensors)
    images, attributes, keys = load_tensors(file, "file of training images", mmap=True)
    return CaptionedScenes(images, Scenes(attributes, keys))


def contrastive_loss(image_features: Tensor, text_features: Tensor, scale: Tensor, is_true: Tensor) -> Tensor:
    """Return the symmetric InfoNCE loss of a batch, float32 ().

    A caption is not a negative of an image that it describes. Image and text features are float32 (B, D) of norm 1, and
    `scale` is float32 (). `is_true` is bool (B, B). `is_true[i, j]` is True if caption j is true for image i.
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
    """Return the contrastive loss of a batch, averaged over the captions of each image."""
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
