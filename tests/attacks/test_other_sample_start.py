"""Tests of APGD from images of other classes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustbench_vlm import attack, evaluate
from robustbench_vlm.attacks.attack_file import AttackFile, StageEntry, attack_of, write_attack_file
from robustbench_vlm.attacks.base import Batch
from robustbench_vlm.attacks.evaluate import attack_samples
from robustbench_vlm.attacks.other_sample_start import with_other_images
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.threat import Threat, parse_eps

EPS = "16/255"


def stage(algorithm: str) -> AttackFile:
    return AttackFile(1, "one", (StageEntry("one", algorithm, {"steps": 3, "restarts": 2}),))


def samples(count: int = 9) -> Batch:
    images = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % 3
    return Batch(images, labels, torch.arange(count), Threat("Linf", parse_eps(EPS)), torch.full_like(labels, 3))


class Trap(nn.Module):
    """A classifier without a useful gradient. It errs only where each pixel is moved towards a given image."""

    def __init__(self, batch: Batch, towards: Tensor) -> None:
        super().__init__()
        eps = float(batch.threat.eps)
        self.corners = (batch.images + (towards - batch.images).clamp(-eps, eps)).clamp(0, 1)
        self.clean, self.labels = batch.images, batch.labels

    def forward(self, images: Tensor) -> Tensor:
        distance = (images[:, None] - self.clean).flatten(2).norm(dim=2)
        nearest = distance.argmin(dim=1)
        right = nn.functional.one_hot(self.labels[nearest], 3).float()
        is_corner = (images - self.corners[nearest]).abs().flatten(1).amax(dim=1) < 1e-6
        return torch.where(is_corner[:, None], -right, right) + 0 * images.sum(dim=(1, 2, 3))[:, None]


def test_the_starts_are_the_nearest_images_of_other_classes_in_order_of_distance() -> None:
    batch = samples()
    found = with_other_images(batch, batch.images, batch.labels).other_images
    assert found is not None and found.shape == (9, 5, 3, 4, 4)
    for n in range(9):
        others = [m for m in range(9) if batch.labels[m] != batch.labels[n]]
        nearest = sorted(others, key=lambda m: float((batch.images[m] - batch.images[n]).norm()))
        assert torch.equal(found[n], batch.images[nearest[:5]])


def test_the_clean_image_replaces_missing_starts() -> None:
    batch = samples(3)
    found = with_other_images(batch, batch.images[:2], batch.labels[:2]).other_images
    assert found is not None
    assert torch.equal(found[0], torch.stack([batch.images[1], batch.images[0]]))


def test_the_attack_visits_the_projections_and_random_starts_do_not() -> None:
    batch = samples()
    whole = with_other_images(batch, batch.images, batch.labels)
    assert whole.other_images is not None
    for run in (0, 1):
        model = Trap(batch, whole.other_images[:, run])
        robust = {
            name: int(attack_samples(model, whole, attack_of(stage(name)), batch_size=4).robust.sum())
            for name in ("apgd", "apgd-other-start")
        }
        assert robust == {"apgd": 9, "apgd-other-start": 0}


def test_a_batch_without_other_images_is_refused_and_attack_adds_them() -> None:
    batch = samples()
    model = Trap(batch, with_other_images(batch, batch.images, batch.labels).other_images[:, 0])  # type: ignore[index]
    with pytest.raises(UserError, match="call with_other_images"):
        attack_samples(model, batch, attack_of(stage("apgd-other-start")), batch_size=4)
    found = attack(model, batch.images, batch.labels, eps=EPS, attack=attack_of(stage("apgd-other-start")))
    assert not bool(found.robust.any())


def test_a_run_with_the_file_does_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    one = stage("apgd-other-start")
    write_attack_file(one, file := tmp_path / "one.json")
    options = {"datasets": ["shapes", "colours"], "samples": 6, "eps": "8/255", "workers": 1}
    found = [
        evaluate("agft", str(file), out=tmp_path / str(size), batch_size=size, **options).to_pandas()
        for size in (2, 64)
    ]
    assert found[0]["robust"].tolist() == found[1]["robust"].tolist()
