"""Code that depends on the device: attacks, engine, models, test-time defenses and training.

`pytest -m cuda` selects these tests. They run on a GPU if there is one, and otherwise on the CPU.
"""

import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robustbench_vlm import evaluate
from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.base import Batch
from robustbench_vlm.attacks.evaluate import attack_samples
from robustbench_vlm.core.progress import Progress, ignore_progress
from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.models.precision import PRECISIONS, arithmetic
from robustbench_vlm.training.distributed import Processes
from robustbench_vlm.training.finetune import Runtime, finetune
from robustbench_vlm.training.request import TrainingRequest, make_job

pytestmark = pytest.mark.cuda
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ATTACKS = {"fgsm": 0.5, "pgd-10": 0.8, "cw": 0.8, "apgd-ce": 0.8, "apgd-dlr": 0.8, "apgd-t": 1.0, "fab-t": 1.0}
"""Minimum share of the samples within the radius that each attack must break; it is 1 for targeted attacks, which are
exact on a linear model."""


def linear_model(device: str) -> nn.Module:
    """Return a linear classifier of five classes on 8 x 8 images; distances to its boundary have a closed form."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5)).eval().requires_grad_(False).to(device)


def samples(model: nn.Module, count: int, eps: Fraction, norm: str = "Linf") -> Batch:
    """Return images with pixels in [0.35, 0.65] and the predictions of the model as labels."""
    device = next(model.parameters()).device
    images = (0.35 + 0.3 * torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))).to(device)
    labels = model(images).argmax(dim=1)
    keys = sample_keys(0, "device", [str(number) for number in range(count)]).to(device)
    return Batch(images, labels, keys, Threat(norm, eps), torch.full_like(labels, 5))


def distances(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the Linf distance of each sample to the decision boundary, margin / L1 norm of its gradient, (B,)."""
    weight, logits = model[1].weight, model(batch.images)  # type: ignore[index]
    own = logits.gather(1, batch.labels[:, None])
    norms = (weight[batch.labels][:, None, :] - weight[None]).abs().sum(dim=2)
    ratio = (own - logits) / norms.clamp_min(1e-12)
    return ratio.scatter(1, batch.labels[:, None], float("inf")).amin(dim=1)


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_break_only_samples_within_the_radius(name: str) -> None:
    model = linear_model(DEVICE)
    far = distances(model, samples(model, 32, Fraction(1, 255)))
    eps = Fraction(float(far.median())).limit_denominator(10**6)
    batch = samples(model, 32, eps)
    robust = attack_samples(model, batch, load_attack(name), batch_size=8).robust
    ratio = (far / float(eps)).cpu()
    assert bool(robust[ratio > 1.02].all())
    broken = ~robust[ratio < 0.98]
    assert len(broken) >= 10 and broken.double().mean() >= ATTACKS[name]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_square_and_autoattack_agree_with_the_cpu(norm: str) -> None:
    verdicts = []
    for device in ("cpu", DEVICE):
        model = linear_model(device)
        eps = Fraction(1, 40) if norm == "Linf" else Fraction(1, 4)
        attack = load_attack("autoattack")
        short = {"queries": 100, "steps": 10}
        stages = tuple(
            dataclasses.replace(
                stage,
                parameters={key: short.get(key, value) for key, value in stage.parameters.items()},
            )
            for stage in attack.stages
        )
        batch = samples(model, 16, eps, norm)
        verdicts.append(attack_samples(model, batch, dataclasses.replace(attack, stages=stages), batch_size=8))
    assert verdicts[0].robust.tolist() == verdicts[1].robust.tolist()


@pytest.mark.parametrize("precision", [name for name, each in PRECISIONS.items() if DEVICE in each.devices])
def test_every_precision_of_the_device_runs(precision: str, taught_card: Path) -> None:
    from robustbench_vlm.models.classifier import load_model

    model = load_model(str(taught_card), "mini")
    model.network.to(DEVICE)
    classifier = model.classifier(["a red thing", "a blue thing"]).to(DEVICE)
    images = torch.rand(4, 3, 32, 32, device=DEVICE)
    with arithmetic(precision), torch.no_grad():
        logits = classifier.in_precision(precision)(images)
        exact = classifier(images)
    assert logits.dtype == torch.float32 and logits.device.type == DEVICE
    assert (logits - exact).abs().max() <= 0.1 * exact.abs().max()


def run(out: Path, **changes: Any) -> dict[tuple[str, str], str]:
    """Return `broken_by` of each sample of a small run, by dataset and id."""
    settings: dict[str, Any] = {"datasets": ["day-night"], "samples": 12, "device": DEVICE, "workers": 1, "out": out}
    frame = evaluate("agft", "pgd-10", **{**settings, **changes}).samples()
    return {(row.dataset, row.sample_id): row.broken_by for row in frame.itertuples()}


def test_a_run_agrees_with_the_cpu_resumes_and_runs_on_two_workers(tmp_path: Path) -> None:
    here = run(tmp_path / "device")
    on_cpu = run(tmp_path / "cpu", device="cpu")
    assert len(here) == 12 and sum(here[key] != value for key, value in on_cpu.items()) <= 1
    shard = next((tmp_path / "device").rglob("*.parquet"))
    shard.unlink()
    assert run(tmp_path / "device") == here
    assert run(tmp_path / "two", workers=2) == here


def test_a_test_time_defense_is_attacked_through_its_loop(tmp_path: Path) -> None:
    frame = evaluate(
        "ttc+clip", "pgd-2", datasets=["day-night"], samples=4, device=DEVICE, workers=1, out=tmp_path
    ).to_pandas()
    assert frame.n.tolist() == [4] and (frame.clean >= frame.robust).all()


def test_a_resumed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    steps = 50 if DEVICE == "cuda" else 6
    request = TrainingRequest("tecoa", "mini", num_images=128, settings={"batch_size": 16, "steps": steps, "warmup": 2})
    job = make_job(request)

    whole, _ = finetune(job, Runtime(tmp_path / "whole", Processes(DEVICE)), ignore_progress)

    def stop(progress: Progress) -> None:
        if progress.done >= steps // 2:
            raise KeyboardInterrupt

    parts = Runtime(tmp_path / "parts", Processes(DEVICE), save_every=1)
    with pytest.raises(KeyboardInterrupt):
        finetune(job, parts, stop)
    resumed, _ = finetune(job, parts, ignore_progress)
    tolerance = 0.0 if DEVICE == "cpu" else 1e-3
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[key], value, rtol=tolerance, atol=tolerance, msg=key)
    before = job.model.network.get_submodule("visual").state_dict()
    assert any(not torch.equal(value.cpu(), before[key].cpu()) for key, value in whole.state_dict().items())
