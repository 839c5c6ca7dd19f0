"""Comparison of each stage with the same stage of pyautoattack, on random models with 2 to 1000 classes."""

import pytest
from made_up import halving_threat, network, samples

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.evaluate import Verdicts, attack_samples

COUNT = 24
WHITE_BOX = ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t")
CASES = [
    *((name, "Linf", classes) for name in WHITE_BOX for classes in (2, 3, 5, 10, 100, 1000)),
    *((name, "L2", classes) for name in WHITE_BOX for classes in (3, 10)),
    *(("square", norm, classes) for norm in ("Linf", "L2") for classes in (2, 10)),
    ("square", "Linf", 1000),
]


def verdicts(name: str, norm: str, classes: int) -> Verdicts:
    times = 2.5 if name.endswith("square") else 1
    kind = "conv" if classes in (3, 10, 1000) else "mlp"
    model = network(kind, classes)
    batch = samples(model, classes, halving_threat(model, classes, norm, times), COUNT)
    return attack_samples(model, batch, load_attack(name), batch_size=COUNT)


@pytest.mark.parametrize(("name", "norm", "classes"), CASES)
def test_a_stage_is_as_strong_as_that_of_pyautoattack(name: str, norm: str, classes: int) -> None:
    ours, theirs = verdicts(name, norm, classes), verdicts(f"pyautoattack:{name}", norm, classes)
    assert 0 < int(theirs.robust.sum()) < COUNT
    only_theirs = ours.robust & ~theirs.robust
    assert int(only_theirs.sum()) <= (2 if name == "square" else 1)
    assert int(ours.robust.sum()) <= int(theirs.robust.sum()) + 1


@pytest.mark.parametrize(("classes", "name", "note"), [
    (2, "apgd-dlr", "dlr-needs-3-classes"),
    (2, "apgd-t", "targeted-dlr-needs-4-classes"),
    (3, "apgd-t", "targeted-dlr-needs-4-classes"),
])  # fmt: skip
def test_a_replaced_loss_raises_a_warning_code(classes: int, name: str, note: str) -> None:
    for prefix in ("", "pyautoattack:"):
        notes = verdicts(prefix + name, "Linf", classes).warnings
        assert all(note in each for each in notes)
    assert not any(verdicts(name, "Linf", 5).warnings)
