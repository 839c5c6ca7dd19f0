"""Tests of pre-training: equal weights, resumed trainings, refused checkpoints and the schedule."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import package_folder, sha256_of
from robustbench_vlm.core.progress import Progress, ignore_progress
from robustbench_vlm.models.card import read_card
from robustbench_vlm.models.classifier import load_model
from robustbench_vlm.training import pretrain
from robustbench_vlm.training.log import read_log
from robustbench_vlm.training.optim import clip_gradients, lr_at, make_optimizer
from robustbench_vlm.training.pretrain import PretrainingSettings, pretrain_base

SMALL = PretrainingSettings(images=128, epochs=1, batch_size=32, warmup=2, save_every=2)


def test_pretraining_twice_gives_equal_weights(tmp_path: Path) -> None:
    cards = [pretrain_base("mini", tmp_path / name, ignore_progress, SMALL) for name in ("one", "two")]
    model = load_model(str(cards[0]), "mini")
    logits = model.classifier(["a red star", "a blue circle"])(torch.rand(2, 3, 32, 32))
    assert logits.shape == (2, 2) and logits.dtype == torch.float32
    assert read_card(cards[0]).image == read_card(cards[1]).image
    assert read_card(cards[0]).text.sha256 == sha256_of(tmp_path / "two" / "text.safetensors")


def test_resumed_pretraining_gives_equal_weights(tmp_path: Path) -> None:
    whole = read_card(pretrain_base("mini", tmp_path / "whole", ignore_progress, SMALL))

    def stop(progress: Progress) -> None:
        # The checkpoint of step 2 is written before step 3 is reported.
        if progress.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain_base("mini", tmp_path / "stopped", stop, SMALL)
    steps: list[int] = []
    card = pretrain_base("mini", tmp_path / "stopped", lambda progress: steps.append(progress.done), SMALL)
    assert read_card(card).image == whole.image and steps == [3, 4]
    (row,) = read_log(tmp_path / "stopped" / "log.csv")
    assert row.step == SMALL.steps and math.isfinite(row.loss) and row.clean is None and row.robust is None


@pytest.mark.parametrize("change", [{"seed": 1}, {"lr": 1e-3}, {"warmup": 3}, {"images": 160}, {"captions": 1}])
def test_a_folder_of_other_settings_is_refused_and_not_changed(change: dict[str, float], tmp_path: Path) -> None:
    path = pretrain_base("mini", tmp_path, ignore_progress, SMALL)
    before = {file.name: sha256_of(file) for file in tmp_path.iterdir()}
    with pytest.raises(UserError, match="other settings or other images: give another folder by --out"):
        pretrain_base("mini", tmp_path, ignore_progress, dataclasses.replace(SMALL, **change))  # type: ignore[arg-type]
    assert {file.name: sha256_of(file) for file in tmp_path.iterdir()} == before
    # The interval of the checkpoints does not change the weights.
    again = pretrain_base("mini", tmp_path, ignore_progress, dataclasses.replace(SMALL, save_every=3))
    assert again == path and sha256_of(tmp_path / "clip.safetensors") == before["clip.safetensors"]


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrain_base("mini", tmp_path, ignore_progress, SMALL)
    monkeypatch.setattr(pretrain, "VERSION", pretrain.VERSION + 1)
    with pytest.raises(UserError, match="other settings"):
        pretrain_base("mini", tmp_path, ignore_progress, SMALL)


def test_a_warm_up_that_is_not_shorter_than_pretraining_is_refused() -> None:
    with pytest.raises(UserError, match="warm-up of 4 steps is not shorter than the pre-training of 4 steps"):
        dataclasses.replace(SMALL, warmup=4)


def test_a_checkpoint_without_an_identity_is_refused(tmp_path: Path) -> None:
    torch.save({"network": {}, "optimizer": {}, "step": 2}, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="not a complete checkpoint"):
        pretrain_base("mini", tmp_path, ignore_progress, SMALL)


def test_a_non_finite_loss_stops_pretraining(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lower the learning rate"):
        pretrain_base("mini", tmp_path, ignore_progress, dataclasses.replace(SMALL, lr=1e38))


def test_the_bundled_card_lists_the_default_settings() -> None:
    bundled = json.loads((package_folder("model_zoo") / "mini" / "clip.json").read_text())
    assert list(pretrain.card_training(PretrainingSettings()).items()) == list(bundled["training"].items())


@pytest.mark.parametrize("settings", [PretrainingSettings(), SMALL])
def test_the_learning_rate_is_the_product_of_warm_up_and_cosine(settings: PretrainingSettings) -> None:
    for step in range(settings.steps):
        warm = min(1.0, (step + 1) / settings.warmup)
        expected = settings.lr * warm * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        assert lr_at(settings.schedule, settings.steps, step) == expected


def test_the_optimizer_has_the_settings_of_clip() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4))
    optimizer = make_optimizer(network, PretrainingSettings().schedule)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [group["betas"] for group in optimizer.param_groups] == [(0.9, 0.98)] * 2
    decayed = {
        id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]
    }
    assert [decayed[id(each)] for each in network.parameters()] == [0.05, 0.0, 0.0, 0.0]


def test_gradients_are_clipped_to_norm_1() -> None:
    layer = torch.nn.Linear(2, 2)
    for scale, expected in ((10.0, 1.0), (0.01, 0.01 * 6**0.5)):
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, scale)
        clip_gradients(layer.parameters(), PretrainingSettings().schedule)
        norm = sum(float(parameter.grad.square().sum()) for parameter in layer.parameters()) ** 0.5  # type: ignore[union-attr]
        assert norm == pytest.approx(expected, rel=1e-5)
