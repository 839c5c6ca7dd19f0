"""Test the measured contracts of models: each planted fault fails its own line, and sound models pass."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_hub import served, write_clip
from torch import Tensor, nn
from torch.nn import functional

from robustbench_vlm import check_model, zero_shot
from robustbench_vlm.analysis import model_checks
from robustbench_vlm.analysis.check_result import CheckResult
from robustbench_vlm.analysis.contracts import first_images
from robustbench_vlm.cli.main import run_command
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.models.in_memory import InMemoryModel
from robustbench_vlm.tracks import MINI

HALF = (0.5, 0.5, 0.5)
LINES = ("loads", "preprocessing", "logits", "no probabilities", "images of any size", "logit scale", "text batch")
MEASURED = ("zero gradients", "gradient", "determinism", "batch independence", "memory", "speed")


def embed(texts: list[str]) -> Tensor:
    rows = [torch.randn(16, generator=torch.Generator().manual_seed(sum(map(ord, text)))) for text in texts]
    return torch.stack(rows)


def embed_centred(texts: list[str]) -> Tensor:
    """Return text features that depend on the other texts of the batch."""
    rows = embed(texts)
    return rows - 0.5 * rows.mean(dim=0)


class Encoder(nn.Module):
    """A small image encoder with one of the planted faults, or without a fault."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.last = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8 * 8 * 8, 16)
        self.fault = fault

    def forward(self, pixels: Tensor) -> Tensor:
        if self.fault == "no_grad":
            with torch.no_grad():
                return self._features(pixels)
        return self._features(pixels)

    def _features(self, pixels: Tensor) -> Tensor:
        if self.fault == "half detached":
            pixels = torch.cat([pixels[..., :20].detach(), pixels[..., 20:]], dim=-1)
        if self.fault == "border detached":
            pixels = torch.cat([pixels[..., :8].detach(), pixels[..., 8:]], dim=-1)
        if self.fault == "straight-through":
            pixels = pixels + (pixels.sign() - pixels).detach()
        hidden = functional.gelu(self.first(pixels))
        if self.fault == "batch norm":
            hidden = functional.batch_norm(hidden, None, None, training=True)
        if self.fault == "dropout":
            hidden = functional.dropout(hidden, 0.5, training=True)
        if self.fault == "nan":
            hidden = hidden / (hidden - hidden)
        if self.fault == "nan gradient":
            hidden = hidden + (hidden - hidden).abs().sqrt()
        return self.last(hidden.flatten(1))


def model_of(fault: str = "", **changed: Any) -> InMemoryModel:
    settings = {
        "image_encoder": Encoder(fault),
        "text_encoder": embed,
        "logit_scale": 100.0,
        "image_size": 32,
        "mean": HALF,
        "std": HALF,
        "name": "planted",
    }
    return zero_shot(**settings | changed)


def by_status(found: list[CheckResult], status: str) -> set[str]:
    return {each.name for each in found if each.status == status}


def test_a_sound_model_passes_every_line() -> None:
    found = check_model(model_of(), device="cpu")
    assert [each.name for each in found] == [*LINES, *MEASURED]
    assert by_status(found, "fail") == by_status(found, "warn") == set()
    gradient = next(each for each in found if each.name == "gradient")
    assert gradient.value is not None and gradient.limit is not None and gradient.value < 0.01 < gradient.limit


@pytest.mark.parametrize(
    ("fault", "failed"),
    [
        ("batch norm", {"batch independence"}),
        ("dropout", {"determinism"}),
        ("no_grad", {"zero gradients", "gradient", "memory", "speed"}),
        ("half detached", {"zero gradients", "gradient"}),
        ("border detached", {"gradient"}),
        ("straight-through", {"gradient"}),
        ("nan", {"logits"}),
        ("nan gradient", {"gradient"}),
    ],
)
def test_a_planted_fault_fails_its_line(fault: str, failed: set[str]) -> None:
    found = check_model(model_of(fault), device="cpu")
    # Dropout also changes the logits of an image alone, and batch norm the slope of an image.
    also = {"dropout": {"batch independence", "gradient"}, "batch norm": {"gradient"}}.get(fault, set())
    assert failed <= by_status(found, "fail") <= failed | also


def test_a_model_that_cannot_classify_a_batch_fails_and_a_module_is_refused() -> None:
    one_image = nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (1, 3072)), nn.Linear(3072, 16))
    found = check_model(model_of(image_encoder=one_image), device="cpu")
    assert by_status(found, "fail") == {"logits"}
    assert "cannot classify images of 32 x 32 pixels" in found[-1].detail
    with pytest.raises(UserError, match=r"takes a name, .*, got Encoder: write zero_shot"):
        check_model(Encoder())  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_model_in_another_dtype_is_measured(dtype: torch.dtype) -> None:
    found = check_model(model_of(image_encoder=Encoder().to(dtype)), device="cpu")
    assert [each.name for each in found] == [*LINES, *MEASURED] and by_status(found, "fail") == set()


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({"std": (0.02, 0.02, 0.02)}, "preprocessing"),
        ({"logit_scale": 1e6}, "logit scale"),
        ({"text_encoder": embed_centred}, "text batch"),
    ],
)
def test_a_wrong_setting_fails_its_line(changes: dict[str, Any], failed: str) -> None:
    assert by_status(check_model(model_of(**changes), device="cpu"), "fail") == {failed}


def test_unusual_values_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert by_status(check_model(model_of(logit_scale=500.0)), "warn") == {"logit scale"}
    assert by_status(check_model(model_of("border detached"), device="cpu"), "warn") == {"zero gradients"}
    monkeypatch.setattr(model_checks, "_free_memory", lambda device: 2**22)
    assert by_status(check_model(model_of(), device="cpu"), "warn") == {"memory"}
    monkeypatch.setattr(model_checks, "_free_memory", lambda device: 2**10)
    assert by_status(check_model(model_of(), device="cpu"), "fail") == {"memory"}
    found = check_model(model_of(text_encoder=lambda texts: embed(texts)), device="cpu")
    assert by_status(found, "warn") == {"loads"} and "cannot be submitted" in found[0].detail


def test_probabilities_in_place_of_logits_fail() -> None:
    prompts = ("a", "b", "c")

    class Softmax(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            shares = pixels.mean(dim=(2, 3)).softmax(dim=1)
            rest = (1 - shares.square().sum(dim=1, keepdim=True)).sqrt()
            return torch.cat([shares, rest], dim=1)

    texts = dict(zip(prompts, torch.eye(4), strict=False))
    model = model_of(
        image_encoder=Softmax(),
        # The fixed texts of the digest are not prompts.
        text_encoder=lambda given: torch.stack([texts.get(each, torch.eye(4)[3]) for each in given]),
        logit_scale=1.0,
    )
    batch, _ = first_images(MINI)
    assert by_status(model_checks.measure_model(model, batch, prompts, device="cpu"), "fail") == {"no probabilities"}


def test_a_slow_model_is_measured_on_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    encoder = Encoder()
    forward = encoder._features
    monkeypatch.setattr(Encoder, "_features", lambda self, pixels: calls.append(len(pixels)) or forward(pixels))
    check_model(model_of(), device="cpu")
    fast = sum(calls)
    del calls[:]
    monkeypatch.setattr(model_checks, "_FAST_SECONDS", 0.0)
    found = check_model(model_of(), device="cpu")
    assert sum(calls) < fast / 2 and by_status(found, "fail") == set()


def test_a_model_of_transformers_with_another_std_than_its_processor_fails(tmp_path: Path) -> None:
    source = write_clip(tmp_path)
    found = check_model(zero_shot(*source, name="clip"), device="cpu")
    assert by_status(found, "fail") == set()
    pixels = next(each for each in found if each.name == "pixels of the processor")
    assert pixels.status == "pass" and pixels.value is not None and pixels.value < 1e-6
    found = check_model(zero_shot(*source, std=HALF, name="clip"), device="cpu")
    assert by_status(found, "fail") == {"preprocessing"} and "pixels of the processor" in by_status(found, "warn")
    assert "the model states std 0.269 0.261 0.276" in next(each.detail for each in found if each.status == "fail")


def test_the_command_measures_a_model_of_the_hub(tmp_path: Path) -> None:
    write_clip(tmp_path / "hub" / "org" / "clip")
    home = {"HF_HOME": str(tmp_path / "hf"), "VLMBENCH_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    with served(tmp_path / "hub") as address:
        answer = subprocess.run(
            [sys.executable, "-m", "robustbench_vlm", "check", "model", "hf:org/clip", "--json"],
            capture_output=True,
            text=True,
            env={**os.environ, **home, "HF_ENDPOINT": address},
            timeout=200,
        )
    assert answer.returncode == 0, answer.stderr
    document = json.loads(answer.stdout)
    names = [each["name"] for each in document["checks"]]
    assert document["passed"] and [name for name in names if name != "pixels of the processor"] == [*LINES, *MEASURED]
    assert all(set(each) == {"name", "status", "passed", "detail", "value", "limit"} for each in document["checks"])


def test_a_card_is_measured_in_a_narrow_terminal(
    make_card: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert run_command(["check", "model", str(make_card()), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert {line[:6] for line in lines} <= {"pass  ", "warn  ", " " * 6}
    assert any(line.startswith("pass  weights are safetensors: untrained-image.safetensors") for line in lines)
