"""Adapters of peft (LoRA and others): read their files, check them, and merge them into a model of transformers."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.strict_json import read_json

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""The names of the two files of an adapter: its configuration and its weights."""
MERGEABLE = ("IA3", "LOHA", "LOKR", "LORA")
"""The accepted types of adapters. These types only change weights, so a model with a merged adapter has no additional
layers.
"""
_MAX_BYTES = 2**20
"""The largest accepted size of a configuration in bytes."""
_MAX_DEPTH = 8
"""The largest accepted depth of nested objects in a configuration."""


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of the adapter in a folder. Raises UserError if it is missing or not a JSON object."""
    path = folder / ADAPTER_FILES[0]
    values = read_json(path, "the configuration of the adapter", max_bytes=_MAX_BYTES, max_depth=_MAX_DEPTH)
    if not isinstance(values, dict):
        raise UserError(f"{path} must have a JSON object, got a {type(values).__name__}: save the adapter with peft")
    return values


def with_adapter(model: nn.Module, folder: Path, name: str, *, base: str) -> nn.Module:
    """Merge the adapter in a folder into a model of transformers and return the model.

    Only safetensors weights are read. `name` is the name of the model in messages. `base` is the base model to which
    the adapter is applied. If the adapter's configuration states a different base model, a warning is issued.

    Raises:
        UserError: The package peft is missing, a file is missing or damaged, the type of the adapter cannot be merged,
            or the weights of the adapter do not fit the model.
    """
    try:
        import peft
    except ImportError as error:
        raise UserError(
            f"{name} needs the package peft, which is not installed: pip install 'robustbench_vlm[hf]'"
        ) from error
    values = read_adapter_config(folder)
    weights = folder / ADAPTER_FILES[1]
    if not weights.is_file():
        raise UserError(
            f"the adapter needs the file {weights}, which does not exist: save it with peft as safetensors; pickled"
            " weights (adapter_model.bin) are not read"
        )
    trained_on = values.get("base_model_name_or_path")
    if trained_on and trained_on != base:
        warnings.warn(
            f"the adapter in {folder} names {trained_on!r} as its base model, but {name} applies it to {base!r}: check"
            " that both have the same weights",
            stacklevel=2,
        )
    config = _parsed(values, folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft warns about missing weights, which are an error below
            adapted = peft.PeftModel.from_pretrained(model, str(folder), config=config, torch_device="cpu")
            expected = set(peft.get_peft_model_state_dict(adapted, save_embedding_layers=False))
    except Exception as error:  # peft, torch and safetensors raise many types of errors for wrong files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"the adapter in {folder} does not fit {name}: {reason}; give its base model") from error
    _check_weights(weights, expected, set(adapted.state_dict()), name)
    merged: nn.Module = adapted.merge_and_unload(safe_merge=True)
    return merged


def _parsed(values: dict[str, Any], folder: Path) -> Any:
    """Return the configuration as an object of peft."""
    import peft

    kind = values.get("peft_type")
    if kind not in MERGEABLE:
        raise UserError(
            f"the adapter in {folder} has the type {kind!r}, expected one of {', '.join(MERGEABLE)}: merge it into its"
            " model with peft and save the whole model"
        )
    if values.get("megatron_config"):  # peft would import the module that the configuration names
        raise UserError(f"the adapter in {folder} needs Megatron, which is not supported: remove megatron_config")
    fields: Any = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)]
    known = {field.name for field in dataclasses.fields(fields)}
    if unknown := sorted(set(values) - known):
        raise UserError(
            f"the adapter in {folder} has the unknown setting {unknown[0]!r}: install a newer peft (pip install -U"
            " peft), or remove the setting if it is a mistake"
        )
    # These settings choose classes that peft puts around a model for training. A merged model does not need them.
    settings = {key: value for key, value in values.items() if key not in ("auto_mapping", "task_type", "peft_type")}
    try:
        return fields(**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"the configuration of the adapter in {folder} cannot be used: {error}; correct it") from error


def _check_weights(path: Path, expected: set[str], names: set[str], name: str) -> None:
    """Raise UserError if an adapter's weights file lacks a weight, or has a weight that does not fit the model."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        found = set(file.keys())
    wrong = sorted(expected - found) or sorted(found - expected - names)
    if wrong:
        state = "lacks the weight" if wrong[0] in expected else "has a weight that does not fit the model,"
        raise UserError(f"the adapter {path} {state} {wrong[0]}: give its base model, not {name}")
