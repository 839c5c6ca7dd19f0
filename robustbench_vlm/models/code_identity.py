"""The identity of a model in memory: digests of tensors, structure and code, and a list of parts without a digest."""

import dataclasses
import enum
import functools
import hashlib
import inspect
import logging
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, MethodType, ModuleType
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from robustbench_vlm.models.code_reads import Read, code_digest, is_installed_module, reads_of

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_SKIPPED = frozenset(vars(nn.Module())) | {"training"}
"""Attributes that every torch module has. The digest of plain attributes does not cover them."""
_VOLATILE = frozenset({"transformers_version", "_name_or_path", "torch_dtype", "dtype", "_attn_implementation"})
"""Configuration entries of transformers models that, for fixed tensors, do not change the output of the model."""
_MAX_CODE = 5000
"""The largest number of functions and classes that an identity covers."""
_IGNORED_OBJECTS = (logging.Logger, re.Pattern, numpy.ufunc)
"""Objects that do not change the output of a model, or whose representation is complete."""


class Trust(enum.IntEnum):
    """The classes whose objects are assumed to have no state that changes."""

    NOTHING = 0
    LIBRARIES = 1
    """The classes of installed packages."""
    EVERYTHING = 2


@dataclass(frozen=True)
class Identity:
    """A description of everything that the output of a function or torch module depends on."""

    parts: Any
    """The code, the structure and the tensors, as values that JSON can store. Equal models have equal values."""
    doubts: tuple[str, ...]
    """Descriptions of the items that `parts` does not cover, such as a closure. Empty if `parts` is complete."""


class _Walk:
    """The functions and classes that a model uses, and the doubts about it. Each is visited once."""

    def __init__(self) -> None:
        self.doubts: list[str] = []
        self.open: set[int] = set()
        """The ids of the modules and containers whose values are being visited."""
        self._seen: dict[int, tuple[int, Any]] = {}
        self._queue: deque[Any] = deque()

    def number(self, value: Any) -> int:
        """Return the number of a function or class. Its code is visited later."""
        if id(value) not in self._seen:
            self._seen[id(value)] = len(self._seen), value  # The value is kept, so its id is not used again.
            self._queue.append(value)
        return self._seen[id(value)][0]

    def bodies(self) -> list[Any]:
        """Return the identities of the code of all functions and classes, in the order of their numbers."""
        found: list[Any] = []
        while self._queue:
            if len(found) == _MAX_CODE:
                self.doubts.append(f"the model uses more than {_MAX_CODE} functions and classes")
                break
            value = self._queue.popleft()
            found.append(_class_body(value, self) if isinstance(value, type) else _function_body(value, self))
        return found


def identity_of(function: Any) -> Identity:
    """Return the identity of a torch module, a function, or an object that is called like a function.

    The identity covers the bytes of tensors, the structure and plain attributes of modules, and the import path of
    code. If the code does not belong to an installed package, the identity also covers the code that runs, the globals
    that it reads, and the functions and classes that it uses in turn. Lambdas, hooks, classes in the main script,
    objects with unknown state and dynamic imports are listed in `doubts`.
    """
    walk = _Walk()
    parts = _module(function, walk) if isinstance(function, nn.Module) else _callable(function, walk)
    if code := walk.bodies():
        parts = {"root": parts, "code": code}
    return Identity(parts, tuple(dict.fromkeys(walk.doubts)))


def state_of(module: nn.Module) -> dict[str, Any]:
    """Return the tensors, the structure and the plain attributes of a module, as values that JSON can store."""
    plain = (bool, int, float, str, list, tuple)
    return {
        "tensors": {name: tensor_digest(tensor) for name, tensor in _tensors(module)},
        "structure": _ADDRESS.sub("", repr(module)),
        "attributes": {
            f"{name}.{key}": _ADDRESS.sub("", repr(value))
            for name, each in module.named_modules()
            for key, value in vars(each).items()
            if key not in _SKIPPED and isinstance(value, plain)
        },
    }


def tensor_digest(tensor: Tensor) -> str:
    """Return the sha256 over the dtype, shape and bytes of a dense tensor."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    head = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
    found = hashlib.sha256(head)
    found.update(data)  # A copy of the data would need hundreds of megabytes for a large embedding.
    return found.hexdigest()


def _module(module: nn.Module, walk: _Walk) -> dict[str, Any]:
    if id(module) in walk.open:
        return {"again": type(module).__qualname__}
    walk.open.add(id(module))
    hooked = [name or "the module" for name, each in module.named_modules() if _has_hooks(each)]
    if hooked:
        walk.doubts.append(f"{hooked[0]} has forward hooks")
    found = {
        "tensors": {name: tensor_digest(tensor) for name, tensor in _tensors(module)},
        "structure": _ADDRESS.sub("", repr(module)),
        "modules": {name: _own_state(each, name, walk) for name, each in module.named_modules()},
    }
    walk.open.discard(id(module))
    return found


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _own_state(module: nn.Module, name: str, walk: _Walk) -> dict[str, Any]:
    """Return the class and the plain attributes of one module.

    Plain attributes are all attributes except parameters, buffers and sub-modules.
    """
    kind = type(module)
    attributes = {key: value for key, value in vars(module).items() if key not in _SKIPPED}
    trust = Trust.EVERYTHING if _is_installed(kind) else Trust.LIBRARIES
    where = f"{kind.__name__} {name}".strip()
    return {
        "class": _code(kind, walk),
        "attributes": {key: _value(value, f"{where}.{key}", walk, trust) for key, value in attributes.items()},
    }


def _value(value: Any, where: str, walk: _Walk, trust: Trust) -> Any:
    """Return a JSON value that identifies the value of an attribute or a global.

    Objects whose state is unknown are added to the doubts, unless `trust` covers them.
    """
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | torch.device):
        return repr(value)
    if isinstance(value, Tensor):
        return tensor_digest(value)
    if isinstance(value, numpy.ndarray | numpy.generic) and value.dtype != object:
        return [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return _container(value, where, walk, trust)
    if isinstance(value, nn.Module):
        return _module(value, walk)
    if isinstance(value, type | FunctionType):
        return _code(value, walk)
    if isinstance(value, functools.partial):
        parts = {"function": value.func, "arguments": value.args, "keywords": value.keywords}
        return _value(parts, where, walk, trust)
    if isinstance(value, MethodType | BuiltinFunctionType):
        owner = getattr(value, "__self__", None)
        if not is_installed_module(value.__module__ or "builtins") and isinstance(value, BuiltinFunctionType):
            walk.doubts.append(f"{where} is the compiled function {value.__module__}.{value.__qualname__}")
        state = None if isinstance(owner, ModuleType) else _value(owner, where, walk, trust)
        code = _value(value.__func__, where, walk, trust) if isinstance(value, MethodType) else None
        return {"method": f"{value.__module__}:{value.__qualname__}", "code": code, "of": state}
    if isinstance(value, enum.Enum):
        return [_code(type(value), walk), value.name]
    if callable(wrapped := getattr(value, "__wrapped__", None)):  # a function with functools.cache
        return [_code(type(value), walk), _value(wrapped, where, walk, trust)]
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return [_code(type(value), walk), _value(fields, where, walk, min(trust, Trust.LIBRARIES))]
    if callable(to_dict := getattr(value, "to_dict", None)) and _is_installed(type(value)):
        settings = {key: item for key, item in to_dict().items() if key not in _VOLATILE}
        return _value(settings, where, walk, Trust.EVERYTHING)
    if isinstance(value, _IGNORED_OBJECTS):
        return repr(value)
    if trust < (Trust.LIBRARIES if _is_installed(type(value)) else Trust.EVERYTHING):
        walk.doubts.append(f"{where} is a {type(value).__name__}, and the state of such an object is unknown")
    return _code(type(value), walk)


def _container(value: Any, where: str, walk: _Walk, trust: Trust) -> Any:
    if id(value) in walk.open:
        return "again"
    walk.open.add(id(value))
    found: Any
    if isinstance(value, Mapping):
        found = {str(key): _value(item, f"{where}[{key!r}]", walk, trust) for key, item in value.items()}
    else:
        items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        found = [_value(item, where, walk, trust) for item in items]
    walk.open.discard(id(value))
    return found


def _callable(function: Callable[..., Any], walk: _Walk) -> Any:
    """Return the identity of a function, a method or a callable object."""
    return _value(function, "the object", walk, Trust.LIBRARIES)


def _function_body(function: FunctionType, walk: _Walk) -> dict[str, Any]:
    """Return the identity of a function's code, its default values, and the values that the code reads.

    For the wrappers of libraries, such as `torch.no_grad`, only the functions that they wrap are covered.
    """
    name = function.__qualname__
    is_own = not is_installed_module(function.__globals__.get("__name__") or "")
    trust = Trust.NOTHING if is_own else Trust.EVERYTHING
    found: dict[str, Any] = {"closure": {}}
    for cell_name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if cell_name != "__class__":
            found["closure"][cell_name] = _value(_content(cell), f"{name} uses {cell_name}, which", walk, trust)
    if not is_own:
        return found
    found["code"] = code_digest(function.__code__)
    found["defaults"] = _value([function.__defaults__, function.__kwdefaults__], f"a default of {name}", walk, trust)
    found["reads"] = [
        [read.name, _read_value(read, f"{name} uses the global {read.name}, which", walk)]
        for read in reads_of(function.__code__, function.__globals__)
    ]
    return found


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # An empty cell.
        return None


def _read_value(read: Read, where: str, walk: _Walk) -> Any:
    if read.is_dynamic:
        walk.doubts.append(f"{where} can read any code or value")
    if not isinstance(read.value, ModuleType):
        return _value(read.value, where, walk, Trust.EVERYTHING if read.is_of_library else Trust.NOTHING)
    file = getattr(read.value, "__file__", None) if read.is_dynamic else None
    source = Path(file).read_bytes() if file and Path(file).is_file() else b""
    return [read.value.__name__, hashlib.sha256(source).hexdigest()]


def _class_body(kind: type, walk: _Walk) -> list[Any]:
    """Return the identities of the methods and attributes of a class and of its base classes."""
    found: list[Any] = []
    for base in kind.__mro__:
        found.append(f"{base.__module__}:{base.__qualname__}")
        for key, value in vars(base).items():
            if _is_installed(base) and not _is_other_code(value):
                continue
            if isinstance(value, MethodDescriptorType):
                walk.doubts.append(f"{base.__qualname__}.{key} is compiled code")
            elif isinstance(value, FunctionType):
                found.append([key, _method(value, walk)])
            elif isinstance(value, staticmethod | classmethod):
                found.append([key, _value(value.__func__, f"{base.__name__}.{key}", walk, Trust.NOTHING)])
            elif isinstance(value, property):
                getters = [value.fget, value.fset]
                found.append([key, [_method(each, walk) for each in getters if isinstance(each, FunctionType)]])
            elif not key.startswith(("__", "_abc_")) and not inspect.isroutine(value):
                found.append([key, _value(value, f"{base.__name__}.{key}", walk, Trust.LIBRARIES)])
    return found


def _method(function: FunctionType, walk: _Walk) -> Any:
    if function.__name__ == "__init__" and not is_installed_module(function.__module__ or ""):
        return code_digest(function.__code__)  # Its results are attributes.
    return _code(function, walk)


def _code(value: Any, walk: _Walk) -> list[Any]:
    """Return the import path of a class or function. If no installed package has it, add the number of its code."""
    path = f"{value.__module__}:{value.__qualname__}"
    if _is_installed(value) and not _is_patched(value):
        return [path]
    if value.__module__ == "__main__":
        walk.doubts.append(f"{value.__qualname__} is defined in the main script or notebook")
    elif "<" in value.__qualname__ and not is_installed_module(value.__module__ or ""):
        walk.doubts.append(f"{value.__qualname__} cannot be imported")
    return [path, walk.number(value)]


def _is_patched(value: Any) -> bool:
    """Return whether a class of an installed package has a method from other code."""
    return any(_is_other_code(method) for base in getattr(value, "__mro__", ()) for method in vars(base).values())


def _is_other_code(value: Any) -> bool:
    """Return whether a value is a function that no installed package defines."""
    name = value.__globals__.get("__name__") if isinstance(value, FunctionType) else None
    return name in sys.modules and not is_installed_module(name)


def _is_installed(value: Any) -> bool:
    """Return whether a class or function belongs to Python, to an installed package, or to this package."""
    name = value.__module__ or "builtins"
    return "<locals>" not in value.__qualname__ and is_installed_module(name)
