"""Checkpoints as training code and libraries save them: wrappers, shards, folders, unusual tensors and names."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from robustbench_vlm.cli.main import run_command
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.models.card import read_card
from robustbench_vlm.models.checkpoint_formats import encoders_of
from robustbench_vlm.models.convert import convert
from robustbench_vlm.models.open_clip import load_architecture
from robustbench_vlm.models.weights import load_encoders

State = Mapping[str, Tensor]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Return a small CLIP with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load_architecture("mini").build()


@pytest.fixture
def state(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights of the small CLIP."""
    return {key: tensor.clone() for key, tensor in network.state_dict().items() if key != "attn_mask"}


def renamed(prefix: str, state: State) -> dict[str, Tensor]:
    return {f"{prefix}{key}": tensor for key, tensor in state.items()}


def views(state: State) -> dict[str, Tensor]:
    """Return the floating-point tensors as views of one large tensor."""
    sizes = [each.numel() for each in state.values()]
    parts = torch.cat([each.flatten().float() for each in state.values()]).split(sizes)
    return {key: part.view(each.shape) for (key, each), part in zip(state.items(), parts, strict=True)}


SAVED: dict[str, Callable[[State], Any]] = {
    "DataParallel": lambda state: renamed("module.", state),
    "torch.compile": lambda state: renamed("_orig_mod.", state),
    "compiled DataParallel": lambda state: renamed("module._orig_mod.", state),
    "compiled image encoder": lambda state: {
        key.replace("visual.", "visual._orig_mod.module."): each for key, each in state.items()
    },
    "Lightning": lambda state: {"state_dict": renamed("model.", state), "epoch": 3, "hyper_parameters": {"lr": 1e-5}},
    "Lightning of a compiled model": lambda state: {"state_dict": renamed("net.clip._orig_mod.", state)},
    "entry model": lambda state: {"model": state, "optimizer": {"state": {0: torch.zeros(3)}}, "epoch": 1},
    "moving average of torch": lambda state: {**renamed("module.", state), "n_averaged": torch.tensor(7)},
    "moving average of timm": lambda state: {"state_dict_ema": renamed("module.", state), "epoch": 1},
    "moving average": lambda state: {"ema": renamed("ema_model.", state), "optimizer": {}},
    "half precision": lambda state: {key: each.half().float().half() for key, each in state.items()},
    "sparse": lambda state: {**state, "visual.conv1.weight": state["visual.conv1.weight"].to_sparse()},
    "logit scale of shape [1]": lambda state: {**state, "logit_scale": state["logit_scale"].reshape(1)},
    "views of one tensor": views,
}


@pytest.mark.parametrize("kind", SAVED)
def test_every_way_to_save_a_whole_clip_gives_its_weights(kind: str, state: State, tmp_path: Path) -> None:
    torch.save(SAVED[kind](state), tmp_path / "saved.pt")
    card = read_card(convert(tmp_path / "saved.pt", "clip", "mini", tmp_path / "out"))
    assert card.image and card.text and not card.base
    image, text = (load_encoders(tmp_path / "out" / each.file) for each in (card.image, card.text))
    found = {**{f"visual.{key}": each for key, each in image.image.items()}, **text.image}
    assert found.keys() == state.keys()
    tolerance = 1e-3 if kind == "half precision" else 0.0
    assert all(
        torch.allclose(found[key].double(), state[key].double(), atol=tolerance, rtol=tolerance) for key in state
    )


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "encoder._orig_mod.module."])
def test_an_image_encoder_is_read_under_any_prefix(prefix: str, state: State) -> None:
    visual = {key.removeprefix("visual."): each for key, each in state.items() if key.startswith("visual.")}
    found = encoders_of(renamed(prefix, visual))
    assert found.image.keys() == visual.keys() and not found.text


def test_tied_tensors_are_saved_separately(state: dict[str, Tensor], tmp_path: Path) -> None:
    first, second = (f"transformer.resblocks.{number}.ln_1.weight" for number in (0, 1))
    state[second] = state[first]
    torch.save(state, tmp_path / "tied.pt")
    card = read_card(convert(tmp_path / "tied.pt", "clip", "mini", tmp_path / "out"))
    assert card.text
    text = load_encoders(tmp_path / "out" / card.text.file).image
    assert torch.equal(text[first], state[first]) and torch.equal(text[second], state[first])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: {**s, "visual.conv1.weight": s["visual.conv1.weight"].to("meta")},
            "conv1.weight is on the device meta",
        ),
        (
            lambda s: {key: (each * 9).to(torch.int8) if each.dim() > 1 else each for key, each in s.items()},
            "without floating-point values .*conv1.weight int8",
        ),
        (lambda s: {**s, "visual.conv1.weight": s["visual.conv1.weight"].bool()}, "without floating-point values"),
        (
            lambda s: {key: each for key, each in s.items() if key != "logit_scale"},
            "text encoder.*missing: logit",
        ),
        (lambda s: {**s, "ln_final.weight": torch.ones(7)}, r"text encoder do not fit.*has a text encoder of width 7"),
        (lambda s: {**s, "visual.layer1.0.conv1.weight": torch.tensor(1.0)}, "a ResNet of width 0"),
        (lambda s: {"model": s, "model_ema": s}, "trained tensors outside the encoders|several models"),
        (lambda s: {**renamed("student.", s), **renamed("teacher.", s)}, "several models.*student.*teacher"),
        (lambda s: {**s, **renamed("module.", s)}, "several tensors for"),
    ],
)
def test_weights_that_cannot_be_used_are_explained(
    change: Callable[[State], Any], message: str, state: State, tmp_path: Path
) -> None:
    content = change(state)
    if "model_ema" in content:
        content = {"model": content["model"], "model_ema": {key: each.clone() for key, each in state.items()}}
    torch.save(content, tmp_path / "saved.pt")
    with pytest.raises(UserError, match=message) as caught:
        convert(tmp_path / "saved.pt", "clip", "mini", tmp_path / "out")
    assert "does not look like the image encoder" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantised_tensors_are_refused() -> None:
    quantised = torch.quantize_per_tensor(torch.ones(4, 3, 2, 2), 0.1, 0, torch.qint8)
    with pytest.raises(UserError, match=r"conv1.weight is quantised"):
        encoders_of({"conv1.weight": quantised, "class_embedding": torch.ones(4)})


@pytest.mark.parametrize("name", ["a.pt", "a.SAFETENSORS", "a.bin", "a"])
def test_the_content_decides_whether_a_file_is_safetensors(name: str, state: State, tmp_path: Path) -> None:
    save_file(dict(state), tmp_path / name)
    assert load_encoders(tmp_path / name).image
    torch.save(dict(state), tmp_path / "torch.safetensors")
    assert load_encoders(tmp_path / "torch.safetensors").image


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a CLIP that the library transformers saved in one file and in shards."""
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(text_config=small, vision_config={**small, "image_size": 32, "patch_size": 16})
    model, folder = CLIPModel(config), tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder / "whole")
    model.save_pretrained(folder / "shards", max_shard_size="1MB")
    torch.save(renamed("module.", model.state_dict()), folder / "parallel.bin")
    return folder


@pytest.mark.parametrize("name", ["whole", "shards", "shards/model.safetensors.index.json", "parallel.bin"])
def test_a_clip_of_transformers_is_read_from_a_folder_shards_or_data_parallel(saved: Path, name: str) -> None:
    expected, found = load_encoders(saved / "whole" / "model.safetensors"), load_encoders(saved / name)
    assert found.checkpoint_format == "transformers" and found.text
    for one, other in ((expected.image, found.image), (expected.text, found.text)):
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: {"metadata": {}}, "must have a weight_map"),
        (lambda index: {"weight_map": {}}, "must have a weight_map"),
        (lambda index: {"weight_map": {"a": "../other.safetensors"}}, "shards must be in the folder of the index"),
        (lambda index: {"weight_map": {"a": "absent.safetensors"}}, "1 of them are missing, first absent.safetensors"),
        (lambda index: {"weight_map": {**index["weight_map"], "new": "model-00001-of-00002.safetensors"}}, "not have"),
    ],
)
def test_a_wrong_index_of_shards_is_explained(
    change: Callable[[Any], Any], message: str, saved: Path, tmp_path: Path
) -> None:
    for path in (saved / "shards").iterdir():
        (tmp_path / path.name).symlink_to(path)
    index = tmp_path / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    first = sorted(values["weight_map"].values())[0]
    changed = json.dumps(change(values)).replace("model-00001-of-00002.safetensors", first)
    index.unlink()
    index.write_text(changed)
    with pytest.raises(UserError, match=message):
        load_encoders(index)


def test_a_single_shard_and_a_folder_without_weights_are_explained(saved: Path, tmp_path: Path) -> None:
    shard = sorted((saved / "shards").glob("model-*"))[0]
    with pytest.raises(UserError, match=r"is one of \d+ shards .* give their index, such as .*model.safetensors.index"):
        load_encoders(shard)
    with pytest.raises(UserError, match=r"lacks weights, expected one of model.safetensors.index.json"):
        load_encoders(tmp_path)
    with pytest.raises(UserError, match="the file is a JSON file"):
        load_encoders(saved / "whole" / "config.json")


@pytest.mark.parametrize("name", ["x" * 300, "\N{GREEK SMALL LETTER ALPHA}" * 100, "a\nb", "..", "a/b", "a\udcff"])
def test_a_name_that_cannot_be_a_file_name_is_refused(name: str, state: State, tmp_path: Path) -> None:
    torch.save(dict(state), tmp_path / "saved.pt")
    with pytest.raises(UserError, match=r"give a (shorter )?name"):
        convert(tmp_path / "saved.pt", "clip", "mini", tmp_path / "out", name=name)
    assert not (tmp_path / "out").exists()


def test_the_longest_accepted_name_is_written(state: State, tmp_path: Path) -> None:
    torch.save(dict(state), tmp_path / "saved.pt")
    assert convert(tmp_path / "saved.pt", "clip", "mini", tmp_path / "out", name="x" * 180).is_file()


def test_a_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*File name too long"):
        convert(tmp_path / ("x" * 300), "clip", "mini", tmp_path)


def test_a_file_name_that_is_not_utf8_is_kept_readable(state: State, tmp_path: Path) -> None:
    torch.save(dict(state), tmp_path / "caf\udce9.pt")
    card = read_card(convert(tmp_path / "caf\udce9.pt", "clip", "mini", tmp_path / "out", name="own"))
    assert card.training["converted_from"] == r"caf\udce9.pt"


def test_a_whole_clip_is_converted_without_a_base(
    state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(dict(state), tmp_path / "whole.pt")
    arguments = ["convert", str(tmp_path / "whole.pt"), "--track", "mini", "--out", str(tmp_path / "out")]
    assert run_command(arguments) == 0
    assert "are those of clip" in " ".join(capsys.readouterr().out.split())
    card = read_card(tmp_path / "out" / "whole.json")
    assert card.architecture == "mini" and card.text and not card.base
    torch.save({key: each for key, each in state.items() if key.startswith("visual.")}, tmp_path / "image.pt")
    assert run_command(["convert", str(tmp_path / "image.pt"), *arguments[2:]]) == 2
    assert "contains only an image encoder" in " ".join(capsys.readouterr().err.split())


def test_convert_of_each_faulty_file_ends_without_a_traceback(state: State, tmp_path: Path) -> None:
    torch.save({**state, "visual.conv1.weight": state["visual.conv1.weight"].to("meta")}, tmp_path / "meta.pt")
    command = [sys.executable, "-m", "robustbench_vlm", "convert", str(tmp_path / "meta.pt"), "--track", "mini"]
    done = subprocess.run([*command, "--base", "clip"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "has no values" in done.stderr
