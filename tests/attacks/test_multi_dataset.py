"""Tests of batches with samples of several datasets."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import SHORT, halving_threat, network, samples, with_parameters
from torch import Tensor, nn

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.base import Batch
from robustbench_vlm.attacks.evaluate import attack_samples
from robustbench_vlm.attacks.model import MultiDatasetClassifier
from robustbench_vlm.core.classifier_interface import as_classifier
from robustbench_vlm.core.errors import UserError


class Union(nn.Module):
    """A classifier whose logits are the concatenated logits of several classifiers."""

    def __init__(self, models: list[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([model(images) for model in self.models], dim=1)


def several_datasets(
    counts: list[int], norm: str
) -> tuple[list[tuple[nn.Module, Batch]], MultiDatasetClassifier, Batch]:
    models = [network("conv", classes).double() for classes in counts]
    threat = halving_threat(models[0], counts[0], norm)
    alone = [samples(model, classes, threat, 6) for model, classes in zip(models, counts, strict=True)]
    whole = replace(
        alone[0],
        images=torch.cat([batch.images for batch in alone]),
        labels=torch.cat([batch.labels for batch in alone]),
        keys=torch.cat([batch.keys for batch in alone]),
        num_classes=torch.cat([batch.num_classes for batch in alone]),
    )
    first = torch.tensor([sum(counts[:n]) for n in range(len(counts))]).repeat_interleave(6)
    logits = MultiDatasetClassifier.of_ranges(as_classifier(Union(models)), first, whole.num_classes)
    return list(zip(models, alone, strict=True)), logits, whole


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(["pgd-10", "cw", "apgd-dlr", "apgd-t", "fab-t", "square", "autoattack"]),
    norm=st.sampled_from(["Linf", "L2"]),
    counts=st.lists(st.sampled_from([2, 3, 4, 5, 12]), min_size=2, max_size=4, unique=True),
    batch_size=st.sampled_from([5, 64]),
)
def test_a_mixed_batch_gives_the_verdicts_of_single_datasets(
    name: str, norm: str, counts: list[int], batch_size: int
) -> None:
    norm = "Linf" if name == "cw" else norm
    attack = with_parameters(load_attack(name), {**SHORT, "cw": {"steps": 12}, "apgd-dlr": {"steps": 12}})
    parts, logits, whole = several_datasets(counts, norm)
    together = attack_samples(logits, whole, attack, batch_size=batch_size)
    for number, (model, batch) in enumerate(parts):
        rows = slice(6 * number, 6 * number + 6)
        alone = attack_samples(model, batch, attack, batch_size=batch_size)
        assert together.broken_by[rows] == alone.broken_by
        assert together.warnings[rows] == alone.warnings
        assert torch.equal(together.forward[rows], alone.forward)
        assert torch.equal(together.backward[rows], alone.backward)
        assert torch.equal(together.adversarial_prediction[rows], alone.adversarial_prediction)
        assert torch.allclose(together.adversarial[rows], alone.adversarial, atol=1e-6)
        assert torch.allclose(together.margin[rows], alone.margin)


def test_logits_of_other_datasets_are_minus_infinity() -> None:
    parts, logits, whole = several_datasets([3, 5], "Linf")
    values = logits(whole.images)
    assert values.shape == (12, 5) and torch.isneginf(values[:6, 3:]).all()
    assert torch.allclose(values[:6, :3], parts[0][0](whole.images[:6]))
    some = torch.tensor([7, 2])
    assert torch.equal(logits.select(some)(whole.images[some]), values[some])


def test_non_finite_logits_are_refused_in_mixed_batches() -> None:
    _, logits, whole = several_datasets([3, 5], "Linf")
    broken = MultiDatasetClassifier(
        as_classifier(lambda images: logits.union(images) / 0), logits.columns, logits.absent
    )
    with pytest.raises(UserError, match="non-finite logits"):
        attack_samples(broken, whole, load_attack("fgsm"), batch_size=64)


def test_a_judge_decides_verdicts_in_mixed_batches() -> None:
    _, classifier, whole = several_datasets([3, 5], "Linf")
    attack = load_attack("pgd-10")
    alone = attack_samples(classifier, whole, attack, batch_size=64)
    judged = attack_samples(classifier, whole, attack, batch_size=64, judge=classifier)
    assert judged.broken_by == alone.broken_by and torch.equal(judged.adversarial, alone.adversarial)
    assert torch.equal(judged.backward, alone.backward) and (judged.forward >= alone.forward).all()
