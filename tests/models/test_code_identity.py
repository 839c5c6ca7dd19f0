"""The identity of models in memory: everything that changes an output changes it, and gaps are named as doubts."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from robustbench_vlm.models.code_identity import identity_of, tensor_digest

SOURCE = """
import torch
from torch import nn

FACTOR = 2.0
TABLE = {"a": 1.0}


class Encoder(nn.Module):
    def __init__(self, factor=1.0):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.factor = factor
        self.register_buffer("shift", torch.zeros(2))

    def forward(self, inputs):
        return self.factor * self.linear(inputs) + self.shift


class Unknown:
    pass


def plain(texts):
    return FACTOR * torch.ones(len(texts), 2)


def with_table(texts):
    return TABLE["a"] * torch.ones(len(texts), 2)


def make(value):
    def inner(texts):
        return value * torch.ones(len(texts), 2)
    return inner
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Return a function that writes the source of a module of the user and imports it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def load(source: str) -> ModuleType:
        (tmp_path / "users_own_code.py").write_text(source, encoding="utf-8")
        sys.modules.pop("users_own_code", None)
        importlib.invalidate_caches()
        import linecache

        linecache.clearcache()
        return importlib.import_module("users_own_code")

    return load


def encoder(module: ModuleType, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = module.Encoder(**settings)
    return made


def test_equal_models_have_an_equal_and_complete_identity(own_code: Callable[[str], ModuleType]) -> None:
    first, second = (identity_of(encoder(own_code(SOURCE))) for _ in range(2))
    assert first.parts == second.parts and first.doubts == ()


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.linear.weight.data.add_(1e-6),
        lambda model: model.linear.bias.data.mul_(-1),
        lambda model: model.shift.add_(1),
        lambda model: setattr(model, "factor", 1.5),
        lambda model: setattr(model, "linear", nn.Linear(4, 2, bias=False)),
        lambda model: setattr(model, "more", nn.ReLU()),
        lambda model: model.half(),
        lambda model: setattr(model, "kept", torch.ones(1)),
    ],
)
def test_every_change_of_tensors_structure_and_attributes_shows(
    own_code: Callable[[str], ModuleType], change: Callable[[Any], Any]
) -> None:
    model = encoder(own_code(SOURCE))
    before = identity_of(model).parts
    change(model)
    assert identity_of(model).parts != before


def test_a_changed_source_shows(own_code: Callable[[str], ModuleType]) -> None:
    before = identity_of(encoder(own_code(SOURCE)))
    after = identity_of(encoder(own_code(SOURCE.replace("+ self.shift", "- self.shift"))))
    assert before.parts != after.parts and after.doubts == ()
    functions = [identity_of(own_code(SOURCE.replace("2.0", factor)).plain) for factor in ("2.0", "3.0")]
    assert functions[0].parts != functions[1].parts and functions[1].doubts == ()


def test_the_mode_and_frozen_parameters_do_not_show(own_code: Callable[[str], ModuleType]) -> None:
    model = encoder(own_code(SOURCE))
    before = identity_of(model).parts
    assert identity_of(model.eval().requires_grad_(False)).parts == before


@pytest.mark.parametrize(
    ("make", "doubt"),
    [
        (lambda code: code.make(2.0), "inner"),
        (lambda code: lambda texts: texts, "<lambda>"),
        (lambda code: code.with_table, "global TABLE"),
        (lambda code: code.Unknown(), "Unknown"),
        (lambda code: _with(encoder(code), "state", code.Unknown()), "Encoder.state"),
        (lambda code: _with(encoder(code), "forward", lambda inputs: inputs), "<lambda>"),
        (lambda code: _hooked(encoder(code)), "forward hooks"),
        (lambda code: type("Local", (nn.Module,), {"__module__": "__main__"})(), "main script"),
    ],
)
def test_a_part_that_cannot_be_pinned_is_a_doubt(
    own_code: Callable[[str], ModuleType], make: Callable[[ModuleType], Any], doubt: str
) -> None:
    assert any(doubt in each for each in identity_of(make(own_code(SOURCE))).doubts)


def _with(model: nn.Module, name: str, value: Any) -> nn.Module:
    object.__setattr__(model, name, value)
    return model


def _hooked(model: nn.Module) -> nn.Module:
    model.get_submodule("linear").register_forward_hook(lambda *arguments: None)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool])
def test_tensor_digests_cover_dtype_shape_and_values(dtype: torch.dtype) -> None:
    one = torch.ones(2, 3).to(dtype)
    others = [torch.ones(3, 2).to(dtype), torch.zeros(2, 3).to(dtype), torch.ones(2, 3, dtype=torch.int16)]
    assert tensor_digest(one) == tensor_digest(torch.ones(3, 2).to(dtype).T)
    assert tensor_digest(one) not in {tensor_digest(other) for other in others}
    assert tensor_digest(torch.tensor(1, dtype=torch.int64)) and tensor_digest(torch.zeros(0, 3))
