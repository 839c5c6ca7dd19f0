"""The two phases of an attack together are the attack: equal verdicts, images and passes."""

import pytest
import torch
from torch import Tensor

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.base import Attack, Batch
from robustbench_vlm.attacks.evaluate import attack_samples
from robustbench_vlm.attacks.phases import divide
from robustbench_vlm.core.classifier_interface import as_classifier
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.threat import Threat, parse_eps


class Linear(torch.nn.Module):
    """A linear classifier of small images. APGD breaks some samples with the first target and some with others."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(classes)
        self.weight = torch.randn(classes, 3 * 4 * 4, generator=generator)

    def forward(self, images: Tensor) -> Tensor:
        return torch.tanh(images.flatten(1) - 0.5) @ self.weight.T


def batch_of(model: torch.nn.Module, classes: int, count: int, eps: str) -> Batch:
    images = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    labels = model(images).argmax(dim=1)
    threat = Threat("Linf", parse_eps(eps))
    return Batch(images, labels, torch.arange(len(labels)), threat, torch.full_like(labels, classes))


# In the cases with 3 and 12 classes, AutoAttack's second phase breaks samples that its first phase left.
@pytest.mark.parametrize(("classes", "eps"), [(2, "10/255"), (3, "16/255"), (12, "8/255"), (30, "12/255")])
@pytest.mark.parametrize("name", ["autoattack", "apgd-t"])
def test_the_phases_give_the_verdicts_and_passes_of_the_attack(classes: int, eps: str, name: str) -> None:
    model = Linear(classes)
    batch = batch_of(model, classes, 60, eps)
    attack = load_attack(name)
    if name == "autoattack":
        # Square and FAB take long. Two stages are enough, because phases end between stages or targets.
        attack = Attack(attack.name, attack.stages[:2], attack.description)
    phases = divide(attack)
    whole = attack_samples(model, batch, attack, batch_size=16)
    first = attack_samples(model, batch, phases.first, batch_size=16)
    left = first.robust.nonzero().squeeze(1)
    second = attack_samples(model, batch.at(left), phases.second, batch_size=16)
    broken_by = list(first.broken_by)
    for row, place in enumerate(left.tolist()):
        broken_by[place] = second.broken_by[row]
    assert tuple(broken_by) == whole.broken_by
    assert len(left) and ("apgd-t" in second.broken_by or classes in (2, 30) or name == "apgd-t")
    assert torch.equal(second.adversarial, whole.adversarial[left])
    classifier = as_classifier(model)
    repeated = phases.repeated(classifier, classifier, classes)
    assert torch.equal(first.forward[left] + second.forward - repeated, whole.forward[left])
    assert torch.equal(first.backward[left] + second.backward, whole.backward[left])


def test_an_attack_with_one_stage_cannot_be_divided() -> None:
    with pytest.raises(UserError, match="only one stage"):
        divide(load_attack("pgd-20"))
