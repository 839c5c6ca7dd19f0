"""The code of Python functions: a digest of the code that runs, and the globals and modules that it reads."""

import builtins
import dis
import functools
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

_INSTALLED = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib"))
_PACKAGE_FOLDERS = frozenset({"site-packages", "dist-packages"})
_DYNAMIC = frozenset({"__import__", "compile", "eval", "exec", "globals", "input", "locals", "open"})
"""Builtins that can read code or values that no list of names contains."""
_DYNAMIC_OF_LIBRARIES = frozenset(
    {"importlib.import_module", "os.environ", "os.getenv", "sys.argv", "sys.modules", "torch.load", "pickle.load"}
)
_IGNORED = frozenset({"EXTENDED_ARG", "CACHE"})
_GLOBAL = frozenset({"LOAD_GLOBAL", "LOAD_NAME"})
_ATTRIBUTE = frozenset({"LOAD_ATTR", "LOAD_METHOD"})


@dataclass(frozen=True)
class Read:
    """A global, an attribute of a module, or a module that a function reads."""

    name: str
    """The name as the function writes it, such as "helpers.scale"."""
    value: Any
    """The present value."""
    is_dynamic: bool = False
    """True if the function may read more than this value."""
    is_of_library: bool = False
    """True if the value is an attribute of a module of an installed package."""


def is_installed_module(name: str) -> bool:
    """Return whether a module belongs to Python, to an installed package, or to this package."""
    if name.partition(".")[0] == __name__.partition(".")[0]:
        return True
    while name:
        if name == "builtins" or name in sys.builtin_module_names:
            return True
        if file := getattr(sys.modules.get(name), "__file__", None):
            return _is_installed_file(file)
        name = name.rpartition(".")[0]  # The module torch._C._nn has no file.
    return False


@functools.cache
def _is_installed_file(file: str) -> bool:
    path = Path(file).resolve()
    is_below = any(path.is_relative_to(folder) for folder in _INSTALLED)
    return is_below or not _PACKAGE_FOLDERS.isdisjoint(path.parts)


def code_digest(code: CodeType) -> str:
    """Return the sha256 over the instructions, constants and names of a code object, without its file and lines.

    A source file may have changed after its import, so its text is not the code that runs.
    """
    return hashlib.sha256(repr(_described(code)).encode()).hexdigest()


def _described(value: Any) -> Any:
    if isinstance(value, CodeType):
        names = value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars
        counts = value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount, value.co_flags
        return value.co_code, names, counts, [_described(each) for each in value.co_consts], value.co_exceptiontable
    if isinstance(value, tuple):
        return [_described(each) for each in value]
    # The order of a set differs between processes.
    return ["set", *sorted(map(repr, value))] if isinstance(value, frozenset) else repr(value)


def reads_of(code: CodeType, namespace: Mapping[str, Any]) -> Iterator[Read]:
    """Yield the globals and modules that a code object and the functions in it read. `namespace` is its globals."""
    steps = [step for step in dis.get_instructions(code) if step.opname not in _IGNORED]
    for position, step in enumerate(steps):
        if step.opname in _GLOBAL:
            attributes = []
            for later in steps[position + 1 :]:
                if later.opname not in _ATTRIBUTE:
                    break
                attributes.append(later.argval)
            yield from _read(step.argval, attributes, namespace)
        elif step.opname == "IMPORT_NAME":
            level = steps[position - 2].argval
            yield _imported(step.argval, level if isinstance(level, int) else 0, namespace)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from reads_of(constant, namespace)


def _read(name: str, attributes: list[str], namespace: Mapping[str, Any]) -> Iterator[Read]:
    if name not in namespace:
        if name in _DYNAMIC or not hasattr(builtins, name):
            yield Read(name, None, is_dynamic=name in _DYNAMIC)
        return
    value, owner = namespace[name], ""
    for attribute in attributes:
        if not isinstance(value, ModuleType) or not hasattr(value, attribute):
            break
        owner = value.__name__
        name, value = f"{name}.{attribute}", getattr(value, attribute)
        if f"{owner}.{attribute}" in _DYNAMIC_OF_LIBRARIES:
            yield Read(name, None, is_dynamic=True)
            return
    is_dynamic = isinstance(value, ModuleType) and not is_installed_module(value.__name__)
    yield Read(name, value, is_dynamic, is_of_library=bool(owner) and is_installed_module(owner))


def _imported(name: str, level: int, namespace: Mapping[str, Any]) -> Read:
    """Return the module that an import in a function reads."""
    package = str(namespace.get("__package__") or "")
    try:
        full = importlib.util.resolve_name("." * level + name, package)
    except ImportError:
        return Read(name, None, is_dynamic=True)
    return Read(f"import {full}", sys.modules.get(full), is_dynamic=not is_installed_module(full))
