"""Test precision: attacks use the precision of the protocol, and verdicts use float32 by default."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.base import Attack, Batch, Outcome, Stage
from robustbench_vlm.attacks.evaluate import attack_samples
from robustbench_vlm.attacks.sanity import SANITY_FORWARD
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.records import SampleResult
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.engine.cell import Cell, Shard
from robustbench_vlm.engine.model_cache import classifier_of, precise_classifier
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resolve import resolve
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.shard import attack_shards, load_batch
from robustbench_vlm.models.classifier import ZeroShotClassifier, load_model
from robustbench_vlm.models.precision import PRECISIONS, arithmetic, check_precision
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.protocols.mini import MINI_QUICK

ONE = Resources(device="cpu", workers=1, batch_size=64)
HALF = replace(MINI_QUICK, name="half", precision="float16")
HALF_VERDICTS = replace(MINI_QUICK, name="half-verdicts", verdict_precision="float16")


@pytest.fixture(scope="module")
def cell(taught_card: Path) -> Cell:
    request = Request(models=(str(taught_card),), attacks=("pgd-10",), datasets=("colours",), eps=("1/510",))
    return resolve(replace(request, samples=16, resources=ONE)).cells[0]


def measured(cell: Cell, **changes: Any) -> list[SampleResult]:
    changed = replace(cell, protocol=replace(cell.protocol, **changes), samples=replace(cell.samples))
    return list(attack_shards([changed], ONE, [Shard(0, 0, len(cell), changed.fingerprint)])[0].results)


def flags() -> tuple[bool, ...]:
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    return matmul.allow_tf32, convolution.allow_tf32, convolution.benchmark, convolution.deterministic


def test_precision_settings_that_cannot_be_restored_raise_user_error() -> None:
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this torch has no fp32_precision")
    code = (
        "import torch; torch.backends.cuda.matmul.fp32_precision = 'tf32'\n"
        "from robustbench_vlm.core.errors import UserError; from robustbench_vlm.models.precision import arithmetic\n"
        "try:\n    with arithmetic(): pass\nexcept UserError as error: print(error)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.startswith("the setting fp32_precision of torch is used in this process")


def test_arithmetic_sets_and_restores_the_precision() -> None:
    before = flags()
    with arithmetic("tf32"):
        assert flags() == (True, True, False, True)
        with arithmetic():
            assert flags() == (False, False, False, True)
        assert flags() == (True, True, False, True)
    with pytest.raises(ZeroDivisionError), arithmetic("tf32"):
        raise ZeroDivisionError
    assert flags() == before


def test_only_the_encoder_runs_in_a_lower_precision(cell: Cell) -> None:
    about = cell.model, cell.track, cell.dataset.prompts, "cpu"
    batch, _ = load_batch(cell, 0, len(cell), device="cpu")
    exact, low = classifier_of(*about), precise_classifier(*about, "bfloat16", "float32")
    assert torch.equal(precise_classifier(*about, "float32", "float32")(batch.images), exact(batch.images))
    assert low.encoder(batch.images).dtype == torch.bfloat16 and low(batch.images).dtype == torch.float32
    error = (low(batch.images) - exact(batch.images)).abs().max() / exact(batch.images).abs().max()
    assert 0 < error < 8 * PRECISIONS["bfloat16"].rounding
    leaf = batch.images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(low(leaf).sum(), leaf)
    assert gradient.dtype == torch.float32 and torch.isfinite(gradient).all() and gradient.abs().max() > 0


def test_verdicts_use_float32_by_default_and_another_precision_if_the_protocol_has_one(cell: Cell) -> None:
    exact = measured(cell)
    about = cell.model, cell.track, cell.dataset.prompts, "cpu"
    calls: dict[str, int] = dict.fromkeys(("float32", "bfloat16"), 0)

    def count(module: torch.nn.Module, arguments: tuple[Tensor]) -> None:
        calls[str(module.encoder.name)] += len(arguments[0])  # type: ignore[union-attr]

    for name in calls:
        precise_classifier(*about, name, "float32").register_forward_pre_hook(count)
    low = measured(cell, precision="bfloat16")
    steps = calls["bfloat16"] - SANITY_FORWARD * len(low)
    right = sum(each.clean_prediction == each.label for each in low)
    # The judge classifies clean images, the final images of the attack, and every image on the way to them. The
    # output checks do not use the judge.
    assert steps >= right > 0 and calls["float32"] == len(low) + right + steps
    calls["float32"] = 0
    rounded = measured(cell, precision="bfloat16", verdict_precision="bfloat16")
    assert calls["float32"] == 0
    assert [each.margin for each in low] == [each.margin for each in exact] != [each.margin for each in rounded]
    # Rounding differences between batches must not raise a warning.
    assert not any(each.warnings for each in low + rounded)


def test_the_product_with_text_features_is_computed_in_float64_for_every_encoder_precision() -> None:
    small = torch.nn.Linear(3 * 4 * 4, 8, bias=False)
    seen: dict[str, set[tuple[torch.dtype, bool]]] = {"encoder": set(), "product": set()}

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
            if function is torch.ops.aten.mm.default:
                kind = "product" if arguments[1].shape == (8, 5) else "encoder"
                seen[kind].add((arguments[0].dtype, torch.backends.cuda.matmul.allow_tf32))
            return function(*arguments, **(keywords or {}))

    encoder = torch.nn.Sequential(torch.nn.Flatten(), small)
    classifier = ZeroShotClassifier(encoder, torch.eye(5, 8), 100.0).in_precision("tf32")
    with torch.no_grad(), arithmetic("tf32"), Spy():
        logits = classifier(torch.rand(2, 3, 4, 4))
    # TF32 rounds only products of float32 numbers.
    assert seen["encoder"] == {(torch.float32, True)} and {dtype for dtype, _ in seen["product"]} == {torch.float64}
    assert logits.dtype == torch.float32


def test_logits_use_bfloat16_if_the_protocol_has_this_logit_precision(cell: Cell) -> None:
    about = cell.model, cell.track, cell.dataset.prompts, "cpu"
    batch, _ = load_batch(cell, 0, len(cell), device="cpu")
    for name in ("float32", "bfloat16"):
        exact, half = (precise_classifier(*about, name, logits) for logits in ("float32", "bfloat16"))
        found, features = half(batch.images), half.image_features(batch.images)  # type: ignore[union-attr]
        by_hand = (half.scale * features).bfloat16() @ half.text_features.bfloat16().T  # type: ignore[union-attr]
        assert found.dtype == torch.float32 and torch.equal(found, by_hand.float())
        assert not torch.equal(found, exact(batch.images))
    (low, exactly) = (measured(cell, logit_precision=logits) for logits in ("bfloat16", "float32"))
    assert [each.margin for each in low] != [each.margin for each in exactly]
    assert not any(each.warnings for each in low)


def test_text_features_are_computed_in_float32_in_every_precision_of_the_attack() -> None:
    model, seen = load_model("clip", "mini"), []
    model.network.get_submodule("transformer").register_forward_pre_hook(lambda *values: seen.append(flags()[:2]))
    with arithmetic("tf32"):
        model.classifier(["a circle", "a square"])
    assert seen == [(False, False)]


def returns(logits: object, batch: Batch, *, batch_size: int) -> Outcome:
    """Return images that are slightly brighter."""
    nothing = torch.zeros_like(batch.labels)
    return Outcome(batch.images + 0.1, nothing, nothing, {})


def at(limit: float) -> Callable[[Tensor], Tensor]:
    """Return a classifier that predicts class 0 for images up to a mean brightness, and class 1 for brighter ones."""
    return lambda images: torch.stack([limit - images.flatten(1).mean(dim=1), torch.zeros(len(images))], dim=1)


GREY = Batch(
    images=torch.full((2, 3, 2, 2), 0.5),
    labels=torch.tensor([0, 0]),
    keys=torch.tensor([0, 1]),
    threat=Threat("Linf", Fraction(1, 10)),
    num_classes=torch.tensor([2, 2]),
)


def test_only_the_judge_gives_the_verdict() -> None:
    attack = Attack("bright", (Stage("bright", "bright", f"{__name__}:returns"),), "")
    for limit, verdict in ((0.7, ""), (0.55, "bright"), (0.4, "clean")):
        for attacked in (0.4, 0.7):
            found = attack_samples(at(attacked), GREY, attack, batch_size=2, judge=at(limit))
            assert found.broken_by == (verdict, verdict)
            assert torch.allclose(found.margin, torch.tensor(limit - 0.5))


@pytest.mark.parametrize("name", ["pgd-10", "cw"])
def test_an_attack_continues_until_it_breaks_the_judge(name: str) -> None:
    attack = load_attack(name)
    alone = attack_samples(at(0.51), GREY, attack, batch_size=2)
    judged = attack_samples(at(0.51), GREY, attack, batch_size=2, judge=at(0.58))
    assert all(alone.broken_by) and (alone.adversarial.flatten(1).mean(dim=1) < 0.58).all()
    assert all(judged.broken_by) and (judged.adversarial.flatten(1).mean(dim=1) > 0.58).all()


@pytest.mark.parametrize(("name", "value"), [("half", "HALF"), ("half-verdicts", "HALF_VERDICTS")])
def test_a_precision_that_the_device_does_not_support_raises_user_error(
    taught_card: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    assert isinstance(PROTOCOLS.table, Mapping)
    monkeypatch.setitem(PROTOCOLS.table, name, f"{__name__}:{value}")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"float16, but the device cpu does not support it.* --device cuda"):
        resolve(Request(models=(str(taught_card),), protocol=name, resources=ONE))


def test_check_precision_accepts_all_precisions_on_cuda_only() -> None:
    for name in PRECISIONS:
        check_precision(name, "cuda")
    with pytest.raises(UserError, match="tf32, but the device cpu does not support it"):
        check_precision("tf32", "cpu")
    with pytest.raises(UserError, match=r"unknown precision 'half': give one of float32"):
        check_precision("half", "cuda")
