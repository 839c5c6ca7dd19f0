"""The identity of a model in memory: digests of tensors, structure and code, and a list of parts without a digest."""

import dataclasses
import hashlib
import inspect
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_SKIPPED = frozenset(vars(nn.Module())) | {"training"}
"""Attributes that every torch module has. The digest of plain attributes does not cover them."""
_VOLATILE = frozenset({"transformers_version", "_name_or_path", "torch_dtype", "dtype", "_attn_implementation"})
"""Configuration entries of transformers models that, for fixed tensors, do not change the output of the model."""
_INSTALLED = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib"))


@dataclass(frozen=True)
class Identity:
    """A description of everything that the output of a function or torch module depends on."""

    parts: Any
    """The code, the structure and the tensors, as values that JSON can store. Equal models have equal values."""
    doubts: tuple[str, ...]
    """Descriptions of the items that `parts` does not cover, such as a closure. Empty if `parts` is complete."""


def identity_of(function: Any) -> Identity:
    """Return the identity of a torch module, a function, or an object that is called like a function.

    The identity covers the bytes of tensors, the structure and plain attributes of modules, and the import path of
    code. If the code does not belong to an installed package, the identity also covers its source. Closures, lambdas,
    hooks, classes in the main script and objects with unknown state are listed in `doubts`.
    """
    doubts: list[str] = []
    parts = _module(function, doubts) if isinstance(function, nn.Module) else _callable(function, doubts)
    return Identity(parts, tuple(dict.fromkeys(doubts)))


def tensor_digest(tensor: Tensor) -> str:
    """Return the sha256 over the dtype, shape and bytes of a dense tensor."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    head = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
    found = hashlib.sha256(head)
    found.update(data)  # A copy of the data would need hundreds of megabytes for a large embedding.
    return found.hexdigest()


def _module(module: nn.Module, doubts: list[str]) -> dict[str, Any]:
    hooked = [name or "the module" for name, each in module.named_modules() if _has_hooks(each)]
    if hooked:
        doubts.append(f"{hooked[0]} has forward hooks")
    return {
        "tensors": {name: tensor_digest(tensor) for name, tensor in _tensors(module)},
        "structure": _ADDRESS.sub("", repr(module)),
        "modules": {name: _own_state(each, name, doubts) for name, each in module.named_modules()},
    }


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _own_state(module: nn.Module, name: str, doubts: list[str]) -> dict[str, Any]:
    """Return the class and the plain attributes of one module.

    Plain attributes are all attributes except parameters, buffers and sub-modules.
    """
    kind = type(module)
    attributes = {key: value for key, value in vars(module).items() if key not in _SKIPPED}
    trusted = _is_installed(kind)
    where = f"{kind.__name__} {name}".strip()
    return {
        "class": _code(kind, doubts),
        "attributes": {key: _value(value, f"{where}.{key}", doubts, trusted) for key, value in attributes.items()},
    }


def _value(value: Any, where: str, doubts: list[str], trusted: bool) -> Any:
    """Return a JSON value that identifies the value of an attribute.

    Objects whose state is unknown are added to `doubts`, unless `trusted` is true. `trusted` is true for attributes of
    classes from installed packages.
    """
    if value is None or isinstance(value, bool | int | str | torch.dtype | torch.device):
        return str(value)
    if isinstance(value, float | complex):
        return repr(value)
    if isinstance(value, Tensor):
        return tensor_digest(value)
    if isinstance(value, Mapping):
        return {str(key): _value(item, f"{where}[{key!r}]", doubts, trusted) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return [_value(item, where, doubts, trusted) for item in items]
    if isinstance(value, nn.Module):
        return _module(value, doubts)
    if isinstance(value, type | FunctionType):
        return _code(value, doubts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return [_code(type(value), doubts), _value(fields, where, doubts, trusted=False)]
    if callable(to_dict := getattr(value, "to_dict", None)) and _is_installed(type(value)):
        settings = {key: item for key, item in to_dict().items() if key not in _VOLATILE}
        return _value(settings, where, doubts, trusted=True)
    if not trusted and not _is_installed(type(value)):
        doubts.append(f"{where} is a {type(value).__name__}, and the state of such an object is unknown")
    return _code(type(value), doubts)


def _callable(function: Callable[..., Any], doubts: list[str]) -> Any:
    """Return the identity of a function or of a callable object."""
    if isinstance(function, FunctionType):
        return _function(function, doubts)
    if isinstance(function, MethodType):
        owner = function.__self__
        state = _module(owner, doubts) if isinstance(owner, nn.Module) else _object(owner, doubts)
        return {"method": function.__func__.__qualname__, "of": state}
    return _object(function, doubts)


def _object(value: Any, doubts: list[str]) -> Any:
    """Return the identity of an object's class. Add the object to `doubts` if no installed package has its class."""
    if not _is_installed(type(value)):
        doubts.append(f"the object is a {type(value).__name__}, and the state of such an object is unknown")
    return _code(type(value), doubts)


def _function(function: FunctionType, doubts: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"code": _code(function, doubts)}
    if _is_installed(function):
        return found
    if function.__closure__:
        doubts.append(f"{function.__qualname__} is a closure")
    for name, value in inspect.getclosurevars(function).globals.items():
        if isinstance(value, bool | int | float | str | bytes):
            found[name] = repr(value)
        elif isinstance(value, type | FunctionType):
            found[name] = _code(value, doubts)
        elif not isinstance(value, ModuleType):
            doubts.append(f"{function.__qualname__} uses the global {name}, a {type(value).__name__}")
    return found


def _code(value: Any, doubts: list[str]) -> list[str]:
    """Return the import path of a class or function. If no installed package has it, add the digest of its file."""
    path = f"{value.__module__}:{value.__qualname__}"
    if _is_installed(value):
        return [path]
    if value.__module__ == "__main__":
        doubts.append(f"{value.__qualname__} is defined in the main script or notebook")
    elif "<" in value.__qualname__:
        doubts.append(f"{value.__qualname__} cannot be imported")
    try:
        source = inspect.getsource(value)
    except (OSError, TypeError):
        doubts.append(f"the source of {path} cannot be read")
        source = ""
    return [path, hashlib.sha256(source.encode()).hexdigest()]


def _is_installed(value: Any) -> bool:
    """Return whether a class or function belongs to Python, to an installed package, or to this package."""
    if value.__module__.partition(".")[0] == __name__.partition(".")[0]:
        return True
    module = sys.modules.get(value.__module__)
    file = getattr(module, "__file__", None)
    if file is None:
        return value.__module__ == "builtins" or value.__module__ in sys.builtin_module_names
    return "<locals>" not in value.__qualname__ and any(
        Path(file).resolve().is_relative_to(folder) for folder in _INSTALLED
    )
