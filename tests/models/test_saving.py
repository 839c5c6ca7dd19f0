"""Weights are written as safetensors in the folder of their card."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.models.classifier import load_model
from robustbench_vlm.models.weights import copy_weights, load_weights, save_weights


def test_weights_are_rounded_and_integers_are_not(tmp_path: Path) -> None:
    tensors = {"weight": torch.tensor([1 / 3, -2.0]), "count": torch.tensor(3)}
    entry = save_weights(tensors, tmp_path / "small.safetensors", "float16")
    stored, loaded = load_file(tmp_path / entry.file), load_weights(tmp_path, entry)[0]
    assert stored["weight"].dtype == torch.float16 and stored["count"].dtype == torch.int64
    assert loaded["weight"].dtype == torch.float32 and loaded["count"].dtype == torch.int64
    assert torch.equal(loaded["weight"], stored["weight"].float())
    assert torch.allclose(loaded["weight"], tensors["weight"], rtol=2**-11)
    exact, _ = load_weights(tmp_path, save_weights(tensors, tmp_path / "whole.safetensors"))
    assert torch.equal(exact["weight"], tensors["weight"])


def test_values_too_large_for_the_dtype_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too large for float16"):
        save_weights({"weight": torch.tensor([1e6])}, tmp_path / "large.safetensors", "float16")
    assert not list(tmp_path.iterdir())


def test_bundled_defenses_are_stored_in_float16_and_run_in_float32() -> None:
    model = load_model("agft", "mini")
    assert all(parameter.dtype == torch.float32 for parameter in model.network.parameters())


def test_a_different_file_of_the_same_name_is_replaced(tmp_path: Path) -> None:
    source, folder = tmp_path / "text.safetensors", tmp_path / "out"
    for content in (b"one", b"two"):
        source.write_bytes(content)
        entry = copy_weights(source, folder)
        assert (folder / entry.file).read_bytes() == content
