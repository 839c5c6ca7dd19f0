"""Conversion of released checkpoints: all formats, with real architectures and random weights."""

import copy
import json
import os
import pickle
import random
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms.functional import normalize
from transformers import CLIPConfig, CLIPModel

from robustbench_vlm.cli.main import run_command
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import package_folder, sha256_of
from robustbench_vlm.models.card import read_card
from robustbench_vlm.models.checkpoint_files import read_checkpoint
from robustbench_vlm.models.checkpoint_formats import CHECKPOINT_FORMATS, check_fit, encoders_of
from robustbench_vlm.models.classifier import Model, load_model
from robustbench_vlm.models.convert import convert
from robustbench_vlm.models.open_clip import load_architecture
from robustbench_vlm.models.weights import load_encoders, save_weights

PICTURES = Path(__file__).parents[2].parent / "shared" / "data" / "real" / "dtd"
MINI = load_architecture("mini")
VIT, RESNET = "open_clip:ViT-B-32-quickgelu", "open_clip:RN50-quickgelu"
PROMPTS = ["a photo of a cat.", "a photo of a dog.", "a photo of a bus."]
State = Mapping[str, Tensor]


def training_state(visual: State) -> dict[str, Any]:
    """Return the entries that TeCoA's code saves next to the encoder: a prompter, an optimizer and numpy numbers."""
    momentum = {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 1e-5, "params": [0]}]}
    return {"epoch": 9, "state_dict": {}, "best_acc1": np.float64(38.2), "optimizer": momentum} | {
        "vision_encoder_state_dict": dict(visual)
    }


def visual_of(network: nn.Module) -> dict[str, Tensor]:
    return dict(network.get_submodule("visual").state_dict())


def _parallel(state: State) -> dict[str, Tensor]:
    return {f"module.{key}": value for key, value in state.items()}


FILES: dict[str, tuple[str, Callable[[nn.Module], Any]]] = {
    "tecoa.pth.tar": ("vision_encoder_state_dict", lambda network: training_state(visual_of(network))),
    "parallel.pth.tar": ("vision_encoder_state_dict", lambda network: training_state(_parallel(visual_of(network)))),
    "fare.pt": ("visual", visual_of),
    "advflyp.pt": (
        "partial_state_dict",
        lambda network: {"partial_state_dict": {f"visual.{key}": each for key, each in visual_of(network).items()}},
    ),
    "agft.pth": ("modules", lambda network: {"modules": {"clip.visual": visual_of(network)}, "params": {}}),
}


@pytest.mark.parametrize("network_name", ["vit", "resnet"])
@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_image_encoder_of_a_real_architecture(
    name: str, network_name: str, request: pytest.FixtureRequest
) -> None:
    network: nn.Module = request.getfixturevalue(network_name)
    layout, content = FILES[name]
    towers = encoders_of(content(network))
    assert towers.checkpoint_format == layout and not towers.text
    check_fit("image", towers.image, visual_of(network))
    assert all(torch.equal(tensor, towers.image[key]) for key, tensor in visual_of(network).items())


@pytest.mark.parametrize("name", FILES)
def test_every_format_is_converted_to_the_same_file(name: str, tmp_path: Path) -> None:
    network = MINI.build()
    layout, content = FILES[name]
    torch.save(content(network), tmp_path / name)
    card = read_card(convert(tmp_path / name, "clip", "mini", tmp_path / "out", defense="tecoa"))
    expected = save_weights(visual_of(network), tmp_path / "expected.safetensors").sha256
    assert card.image and (card.image.sha256, card.text, card.base) == (expected, None, "clip")
    assert (card.name, card.defense) == (name.partition(".")[0], "tecoa")
    origin = {"converted_from": name, "sha256": sha256_of(tmp_path / name), "layout": layout}
    assert card.training == origin


def test_convert_does_not_replace_the_card_of_another_file(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for folder, seed in (("first", 0), ("second", 1)):
        torch.manual_seed(seed)
        (tmp_path / folder).mkdir()
        torch.save(visual_of(MINI.build()), tmp_path / folder / "model_best.pt")
    card = convert(tmp_path / "first" / "model_best.pt", "clip", "mini", out)
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert convert(tmp_path / "first" / "model_best.pt", "clip", "mini", out) == card
    with pytest.raises(
        UserError, match=r"already exists and was made from model_best\.pt: give the new model another name with --name"
    ):
        convert(tmp_path / "second" / "model_best.pt", "clip", "mini", out)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert convert(tmp_path / "second" / "model_best.pt", "clip", "mini", out, name="other").stem == "other"


def test_all_checkpoint_formats_are_tested() -> None:
    assert {layout for layout, _ in FILES.values()} | {"clip", "transformers"} == set(CHECKPOINT_FORMATS)


def test_a_format_other_than_the_expected_one_is_refused(tmp_path: Path) -> None:
    torch.save({"vision_encoder_state_dict": visual_of(MINI.build())}, tmp_path / "a.pt")
    with pytest.raises(
        UserError, match="the checkpoint format is 'vision_encoder_state_dict', but the card states 'visual'"
    ):
        load_encoders(tmp_path / "a.pt", "visual")


def logits(network: nn.Module, architecture: str) -> Tensor:
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return Model("", "", network, load_architecture(architecture)).classifier(PROMPTS)(images)


@pytest.mark.parametrize("place", ["params", "state_dict"])
def test_trained_tensors_outside_the_encoders_are_refused(place: str) -> None:
    tower = {"conv1.weight": torch.ones(2, 3)}
    content = {
        "vision_encoder_state_dict": tower,
        "epoch": 1,
        "best": torch.tensor(0.5),
        "optimizer": {"m": torch.ones(9)},
    }
    assert encoders_of({**content, place: {}}).checkpoint_format == "vision_encoder_state_dict"
    with pytest.raises(UserError, match=f"trained tensors outside the encoders: {place}.prompt"):
        encoders_of({**content, place: {"prompt": torch.ones(3, 4)}})


@pytest.mark.parametrize("network_name", ["vit", "resnet"])
def test_openais_state_dict_gives_the_logits_of_open_clip(network_name: str, request: pytest.FixtureRequest) -> None:
    """OpenAI publishes state dicts in half precision with three entries that are not weights."""
    from open_clip.model import build_model_from_openai_state_dict

    network: nn.Module = request.getfixturevalue(network_name)
    architecture = VIT if network_name == "vit" else RESNET
    half = {key: each.half() if each.is_floating_point() else each for key, each in network.state_dict().items()}
    openai = half | {key: torch.tensor(224) for key in ("input_resolution", "context_length", "vocab_size")}
    expected = logits(build_model_from_openai_state_dict(dict(openai)).float(), architecture)
    assert expected.std() > 0.01
    for content in (openai, {"epoch": 3, "state_dict": _parallel(half)}):
        towers = encoders_of(content, "clip")
        found = copy.deepcopy(network)
        found.load_state_dict({**{f"visual.{key}": each for key, each in towers.image.items()}, **towers.text})
        assert torch.allclose(logits(found, architecture), expected, atol=1e-5)


def test_a_converted_clip_of_transformers_gives_the_same_logits(tmp_path: Path) -> None:
    """The library transformers writes the checkpoint, `convert` reads it, and this package runs it."""
    torch.manual_seed(0)
    theirs = CLIPModel(CLIPConfig()).eval()
    with torch.no_grad():
        # With initial weights, all prompts would have nearly the same embedding.
        for name, parameter in theirs.named_parameters():
            if name != "logit_scale" and parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path / "hub")
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pixels = normalize(images, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
        expected = theirs(input_ids=open_clip.tokenize(PROMPTS), pixel_values=pixels).logits_per_image
    path = convert(tmp_path / "hub" / "model.safetensors", "clip", "zeroshot15", tmp_path / "out")
    card = read_card(path)
    assert card.text and not card.base and card.training["layout"] == "transformers"
    with torch.no_grad():
        found = load_model(str(path), "zeroshot15").classifier(PROMPTS)(images)
    assert expected.std() > 0.01 and torch.allclose(found, expected, atol=1e-5)
    configuration = tmp_path / "hub" / "config.json"
    values = json.loads(configuration.read_text())
    values["vision_config"]["hidden_act"] = "gelu"
    configuration.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"states the activation function gelu, but .*quickgelu uses quick_gelu"):
        convert(tmp_path / "hub", "clip", "zeroshot15", tmp_path / "other")


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("text_model.encoder.layers.3.self_attn.k_proj.weight", "transformer.resblocks.3.attn.in_proj_weight (1024"),
        ("visual_projection.weight", "1 missing: proj"),
    ],
)
def test_an_incomplete_clip_of_transformers_is_refused(lost: str, said: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        state = CLIPModel(CLIPConfig()).state_dict()
    torch.save({key: torch.zeros(each.shape) for key, each in state.items() if key != lost}, tmp_path / "cut.pt")
    with pytest.raises(UserError, match=re.escape(said)):
        convert(tmp_path / "cut.pt", "clip", "zeroshot15", tmp_path / "out")


def test_a_whole_clip_needs_no_base(tmp_path: Path) -> None:
    network = MINI.build().eval()
    torch.save({"state_dict": _parallel(network.state_dict())}, tmp_path / "whole.pt")
    path = convert(tmp_path / "whole.pt", "clip", "mini", tmp_path / "out")
    card = read_card(path)
    assert card.text and not card.base and card.training["layout"] == "clip"
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = Model("", "", network, MINI).classifier(PROMPTS)(images)
        assert torch.allclose(load_model(str(path), "mini").classifier(PROMPTS)(images), expected, atol=1e-5)


def test_a_resnet_without_batch_counters_is_accepted(resnet: nn.Module, tmp_path: Path) -> None:
    visual = {key: value for key, value in visual_of(resnet).items() if not key.endswith("num_batches_tracked")}
    torch.save(training_state(visual), tmp_path / "rn50.pth.tar")
    card = read_card(convert(tmp_path / "rn50.pth.tar", "clip-rn50", "zeroshot15", tmp_path))
    assert card.base == "clip-rn50" and card.architecture == "open_clip:RN50-quickgelu"


def test_a_released_vit_is_converted_and_run(
    vit: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file in TeCoA's format is converted and evaluated; only its weights are random."""
    import open_clip

    def base(name: str, pretrained: str) -> nn.Module:
        network = copy.deepcopy(vit)
        with torch.no_grad():
            network.get_submodule("visual").get_parameter("proj").zero_()
        return network

    monkeypatch.setattr(open_clip, "create_model", base)
    monkeypatch.setenv("VLMBENCH_CACHE", str(tmp_path / "cache"))
    torch.save(training_state(visual_of(vit)), tmp_path / "TeCoAmodel_best.pth.tar")
    card = tmp_path / "out" / "tecoa.json"
    command = ["convert", str(tmp_path / "TeCoAmodel_best.pth.tar"), "--base", "clip", "--out", str(card.parent)]
    assert run_command([*command, "--name", "tecoa"]) == 0
    assert f"vlmbench run --model {card} --track zeroshot15" in capsys.readouterr().out
    model = load_model(str(card), "zeroshot15")
    assert torch.allclose(logits(model.network, VIT), logits(vit, VIT), atol=1e-5)
    monkeypatch.setattr("robustbench_vlm.engine.model_cache.load_model", lambda reference, track: model)
    options = ["--attack", "fgsm", "--samples", "2", "--workers", "1", "--device", "cpu", "--track", "zeroshot15"]
    if PICTURES.is_dir():
        run = ["run", "--model", str(card), "--images", str(PICTURES), "--out", str(tmp_path / "runs")]
        assert run_command([*run, *options]) == 0
        assert len(list((tmp_path / "runs" / "zeroshot15" / "tecoa").rglob("*.parquet"))) == 1


def test_a_converted_model_passes_check(tmp_path: Path) -> None:
    torch.save(training_state(load_file(package_folder("model_zoo") / "mini" / "tecoa.safetensors")), tmp_path / "a.pt")
    command = ["convert", str(tmp_path / "a.pt"), "--base", "clip", "--track", "mini", "--out", str(tmp_path)]
    assert run_command(command) == 0
    assert run_command(["check", "model", str(tmp_path / "a.json")]) == 0


def test_safetensors_of_this_package_are_converted(tmp_path: Path) -> None:
    source = package_folder("model_zoo") / "mini" / "tecoa.safetensors"
    card = read_card(convert(source, "clip", "mini", tmp_path, name="again"))
    before, after = load_file(source), load_file(tmp_path / "again.safetensors")
    assert all(torch.equal(before[key].float(), after[key].float()) for key in before | after)
    again, bundled = load_model(str(tmp_path / "again.json"), "mini"), load_model("tecoa", "mini")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(again.classifier(PROMPTS)(images), bundled.classifier(PROMPTS)(images)) and card.base == "clip"


@pytest.mark.parametrize(
    ("network_name", "base", "message"),
    [
        ("vit", RESNET, "width 768 with patch size 32, 12 layers and images of 224 pixels, as ViT-B-32"),
        (
            "vit",
            "open_clip:ViT-B-16",
            r"2 with another shape: .*conv1.weight \(768, 3, 32, 32\), expected.*as ViT-B-32",
        ),
        ("resnet", VIT, "a ResNet of width 64 with 3-4-6-3 blocks, as RN50"),
    ],
)
def test_the_architecture_of_the_file_is_named_if_the_base_differs(
    network_name: str, base: str, message: str, request: pytest.FixtureRequest
) -> None:
    state = visual_of(request.getfixturevalue(network_name))
    with torch.device("meta"):
        expected = visual_of(load_architecture(base).build())
    with pytest.raises(UserError, match=message):
        check_fit("image", state, expected)


def test_the_message_for_a_wrong_base_advises_base(tmp_path: Path) -> None:
    torch.save(visual_of(MINI.build()), tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"does not fit open_clip:RN50.*a ResNet of width 16 with 1-1-1-1.*with --base"):
        convert(tmp_path / "a.pt", "clip-rn50", "zeroshot15", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("conv1.weight"), "1 missing: conv1.weight"),
        (lambda state: state.update(prompt=torch.zeros(1)), "1 unexpected: prompt"),
        (
            lambda state: state.update({"conv1.weight": torch.zeros(1)}),
            r"conv1.weight \(1,\), expected \(8, 3, 3, 3\)",
        ),
        (
            lambda state: state.update({"bn1.bias": torch.full((8,), float("nan"))}),
            "NaN or infinite values in 1 tensors, for example in bn1.bias",
        ),
        (lambda state: state.clear(), "no entries"),
    ],
)
def test_tensors_that_do_not_fit_the_architecture_are_refused(
    change: Callable[[dict[str, Tensor]], object], message: str, tmp_path: Path
) -> None:
    state = visual_of(MINI.build())
    change(state)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(UserError, match=message):
        convert(tmp_path / "a.pt", "clip", "mini", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [{"model": {"x": 1}}, [1, 2], {"modules": {"other": {}}}, 7, {0: torch.zeros(2)}])
def test_unknown_formats_are_refused_with_a_list_of_known_formats(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(
        UserError, match=r"format is unknown: the file has .*known formats are vision_encoder_state_dict"
    ):
        convert(tmp_path / "a.pt", "clip", "mini", tmp_path)


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photo.jpg", b"x" * 100)


def _script(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), str(path))


def _truncated(path: Path) -> None:
    torch.save({"a": torch.zeros(10_000)}, path)
    path.write_bytes(path.read_bytes()[:20_000])


def _truncated_old(path: Path) -> None:
    torch.save({"a": torch.zeros(10_000)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:20_000])


def _tar(path: Path) -> None:
    (path.parent / "inside").write_bytes(b"x")
    with tarfile.open(path, "w") as archive:
        archive.add(path.parent / "inside")


class Code:
    """An object whose pickle writes a file if its code is run."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (exec, ("open('ran', 'w').close()",))


NO_CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "page.pt": (lambda path: path.write_text("<!DOCTYPE html><html>"), "a web page"),
    "page.safetensors": (lambda path: path.write_text("\n<html><head>" + " " * 50), "a web page"),
    "empty.pt": (lambda path: path.write_bytes(b""), "the file is empty; download it again"),
    "lfs.pt": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0"), "Git LFS"),
    "zip.pt": (_zip, "a zip archive of other files"),
    "script.pt": (_script, "TorchScript.*open_clip:ViT-B-32-quickgelu/openai"),
    "truncated.pt": (_truncated, "the file is incomplete"),
    "truncated.pth.tar": (_truncated_old, "may be incomplete"),
    "tar.pth.tar": (_tar, "a tar archive"),
    "code.pt": (lambda path: torch.save({"a": Code()}, path), "refers to .*exec.*none of it was run"),
    "code.pkl": (lambda path: path.write_bytes(pickle.dumps(Code())), "none of it was run"),
    "noise.pt": (lambda path: path.write_bytes(bytes(range(256)) * 20), "does not contain only tensors"),
    "text.pt": (lambda path: path.write_text("hello"), "does not contain only tensors"),
}


def _changed(content: bytes, draw: random.Random) -> bytes:
    """Return the content of a file with some bytes overwritten, removed or added."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(changed))
        changed[start : start + draw.choice((0, 1, 1, 1, 5))] = draw.randbytes(draw.choice((0, 1, 1, 1, 5)))
    return bytes(changed)


@pytest.mark.parametrize("name", ["zip.pt", "old.pt", "a.safetensors"])
def test_damaged_files_are_read_or_refused_with_a_user_error(name: str, tmp_path: Path) -> None:
    path, draw, refused = tmp_path / name, random.Random(name), 0
    state = {"visual.proj": torch.zeros(3, 4), "half": torch.ones(2, dtype=torch.float16)}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=name == "zip.pt")
    content = path.read_bytes()
    for _ in range(800):
        path.write_bytes(_changed(content, draw))
        try:
            read_checkpoint(path)
        except UserError as error:
            refused += 1
            assert "weights_only" not in str(error)
    assert refused > 100


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(("function", "named"), [(os.system, r"(posix|nt)\.system"), (exec, "exec")])
def test_messages_about_pickles_do_not_advise_running_their_code(
    function: Callable[..., object], named: str, protocol: int, tmp_path: Path
) -> None:
    calls = type("Calls", (), {"__reduce__": lambda self: (function, ("raise SystemExit",))})
    path = tmp_path / "a.pt"
    torch.save({"a": calls()}, path, pickle_protocol=protocol)
    # torch reads the names of classes only in protocol 2.
    with pytest.raises(
        UserError, match=named if protocol == 2 else "does not contain only tensors: Unsupported operand"
    ) as caught:
        read_checkpoint(path)
    assert "none of it was run" in str(caught.value)
    assert "weights_only" not in str(caught.value) and "Re-running" not in str(caught.value)


@pytest.mark.parametrize("name", NO_CHECKPOINTS)
def test_files_that_are_not_checkpoints_are_recognised(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, message = NO_CHECKPOINTS[name]
    make(tmp_path / name)
    with pytest.raises(UserError, match=message):
        convert(tmp_path / name, "clip", "mini", tmp_path / "out")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_a_missing_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["convert", "nowhere.pt", "--base", "clip"]) == 2
    assert "no such file: nowhere.pt" in capsys.readouterr().err


def test_a_name_must_not_be_a_path(tmp_path: Path) -> None:
    torch.save(visual_of(MINI.build()), tmp_path / "a.pt")
    for name in ("../a", "a/b", "/a"):
        with pytest.raises(UserError, match="is a path"):
            convert(tmp_path / "a.pt", "clip", "mini", tmp_path / "out", name=name)


def test_numpy_numbers_are_ignored_and_other_numpy_objects_are_refused(tmp_path: Path) -> None:
    state = training_state(visual_of(MINI.build()))
    path = tmp_path / "a.pth.tar"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert b"numpy._core.multiarray\nscalar" in content
    for spelling in (b"numpy._core.multiarray\nscalar", b"numpy.core.multiarray\nscalar"):
        path.write_bytes(content.replace(b"numpy._core.multiarray\nscalar", spelling))
        convert(path, "clip", "mini", tmp_path, name=f"of-{len(spelling)}")
    path.write_bytes(content.replace(b"numpy._core.multiarray\nscalar", b"numpy.testing\nrundocs"))
    with pytest.raises(UserError, match=r"numpy.testing.rundocs.*none of it was run"):
        convert(path, "clip", "mini", tmp_path)


def test_a_whole_clip_must_have_its_text_encoder(tmp_path: Path) -> None:
    state = dict(MINI.build().state_dict())
    state.pop("text_projection")
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"tensors of the text encoder.*1 missing: text_projection"):
        convert(tmp_path / "a.pt", "clip", "mini", tmp_path)


def test_the_new_card_keeps_mean_std_and_the_base_of_its_base(tmp_path: Path) -> None:
    save_file(visual_of(MINI.build()), tmp_path / "own.safetensors")
    own = convert(tmp_path / "own.safetensors", "clip", "mini", tmp_path)
    values = json.loads(own.read_text())
    own.write_text(json.dumps({**values, "mean": [0.4, 0.4, 0.4], "std": [0.2, 0.2, 0.2]}))
    card = read_card(convert(tmp_path / "own.safetensors", str(own), "mini", tmp_path / "next"))
    assert (card.base, card.mean, card.std) == ("clip", (0.4, 0.4, 0.4), (0.2, 0.2, 0.2))
