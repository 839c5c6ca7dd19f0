"""The identity of models in memory: everything that changes an output changes it, and gaps are named as doubts."""

import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from robustbench_vlm.models.code_identity import identity_of, tensor_digest

SOURCE = """
import torch
import users_helper
from torch import nn

FACTOR = 2.0
TABLE = {"a": 1.0}
SCALES = (1.0,)


class Base(nn.Module):
    def scaled(self, inputs):
        return sum(SCALES[0] * each for each in [inputs])


class Encoder(Base):
    def __init__(self, factor=1.0):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.factor = factor
        self.register_buffer("shift", torch.zeros(2))

    def forward(self, inputs):
        return self.factor * users_helper.act(self.scaled(self.linear(inputs))) + self.shift


class Unknown:
    pass


def plain(texts):
    return FACTOR * torch.ones(len(texts), 2)


OBJECT = Unknown()


def with_object(texts):
    return OBJECT.scale * torch.ones(len(texts), 2)


def with_import(texts):
    import users_helper
    return users_helper.act(torch.ones(len(texts), 2))


def with_eval(texts):
    return eval("FACTOR") * torch.ones(len(texts), 2)


@torch.no_grad()
def decorated(texts):
    return plain(texts)


def with_table(texts):
    return TABLE["a"] * torch.ones(len(texts), 2)


def make(value):
    def inner(texts):
        return value * torch.ones(len(texts), 2)
    return inner
"""


HELPER = """
DEPTH = 1.0


def act(values):
    return inner(values)


def inner(values):
    return DEPTH * values
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Return a function that writes the source of a module of the user and imports it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "users_helper.py").write_text(HELPER, encoding="utf-8")
    sys.modules.pop("users_helper", None)

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


@pytest.mark.parametrize(
    "change",
    [
        lambda code: setattr(code.users_helper, "act", lambda values: -values),
        lambda code: setattr(code.users_helper, "inner", code.plain),
        lambda code: setattr(code.users_helper, "DEPTH", -1.0),
        lambda code: setattr(code, "SCALES", (-1.0,)),
        lambda code: setattr(code.Encoder, "forward", code.Base.scaled),
        lambda code: setattr(code.Base, "scaled", code.Encoder.forward),
    ],
)
def test_a_change_of_code_or_globals_that_the_code_reads_shows(
    own_code: Callable[[str], ModuleType], change: Callable[[ModuleType], None]
) -> None:
    code = own_code(SOURCE)
    model = encoder(code)
    before = identity_of(model)
    change(code)
    assert before.doubts == () and identity_of(model).parts != before.parts


@pytest.mark.parametrize("name", ["with_table", "decorated"])
def test_globals_of_plain_values_and_decorated_functions_are_covered(
    own_code: Callable[[str], ModuleType], name: str
) -> None:
    code = own_code(SOURCE)
    before = identity_of(getattr(code, name))
    code.TABLE["a"] = code.FACTOR = -1.0
    assert before.doubts == () and identity_of(getattr(code, name)).parts != before.parts


def test_a_changed_closure_value_shows(own_code: Callable[[str], ModuleType]) -> None:
    values = [1.0]
    function = own_code(SOURCE).make(values)
    before = identity_of(function).parts
    values[0] = -1.0
    assert identity_of(function).parts != before


def test_attributes_that_are_callables_or_arrays_are_distinguished(own_code: Callable[[str], ModuleType]) -> None:
    code = own_code(SOURCE)
    values: list[Any] = [torch.sigmoid, torch.tanh, numpy.zeros(2), numpy.ones(2), numpy.tanh, numpy.exp]
    values += [
        functools.partial(code.plain, 1),
        functools.partial(code.plain, 2),
        functools.partial(code.with_table, 1),
    ]
    parts = [repr(identity_of(_with(encoder(code), "state", value)).parts) for value in values]
    assert len(set(parts)) == len(values)


def test_the_mode_and_frozen_parameters_do_not_show(own_code: Callable[[str], ModuleType]) -> None:
    model = encoder(own_code(SOURCE))
    before = identity_of(model).parts
    assert identity_of(model.eval().requires_grad_(False)).parts == before


@pytest.mark.parametrize(
    ("make", "doubt"),
    [
        (lambda code: code.make(2.0), "inner"),
        (lambda code: lambda texts: texts, "<lambda>"),
        (lambda code: code.with_object, "global OBJECT"),
        (lambda code: code.with_import, "import users_helper"),
        (lambda code: code.with_eval, "eval"),
        (lambda code: functools.partial(code.make(2.0)), "inner"),
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
