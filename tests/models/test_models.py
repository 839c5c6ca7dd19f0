"""Models: digests, damaged and malicious files, and logits equal to open_clip's."""

import dataclasses
import json
import pickle
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import sha256_of
from robustbench_vlm.datasets.mini import SHAPES
from robustbench_vlm.models.card import ModelCard, Weights, find_card, read_card, write_card
from robustbench_vlm.models.classifier import Model, ZeroShotClassifier, load_model
from robustbench_vlm.models.image_encoder import ImageEncoder
from robustbench_vlm.models.mini import MINI
from robustbench_vlm.models.open_clip import load_architecture
from robustbench_vlm.models.text_encoder import tokenize
from robustbench_vlm.models.weights import load_weights


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return MINI.build().eval()


@pytest.fixture
def card_path(network: nn.Module, tmp_path: Path) -> Path:
    state = {key: value for key, value in network.state_dict().items() if key != "attn_mask"}
    towers = {
        "image": {key[7:]: value for key, value in state.items() if key.startswith("visual.")},
        "text": {key: value for key, value in state.items() if not key.startswith("visual.")},
    }
    weights = {}
    for tower, tensors in towers.items():
        save_file(tensors, tmp_path / f"{tower}.safetensors")
        weights[tower] = Weights(f"{tower}.safetensors", sha256_of(tmp_path / f"{tower}.safetensors"))
    write_card(ModelCard("random", "mini", **weights), tmp_path / "random.json")
    return tmp_path / "random.json"


def test_a_written_card_is_read_back_unchanged(card_path: Path) -> None:
    card = read_card(card_path)
    write_card(card, card_path.parent / "again.json")
    assert read_card(card_path.parent / "again.json") == card


def test_logits_equal_those_of_open_clip(network: nn.Module, card_path: Path) -> None:
    model = load_model(str(card_path), "mini")
    prompts = ["a red star", "a blue circle", "three fish"]
    images = torch.rand(5, 3, 32, 32)
    with torch.no_grad():
        ours = model.classifier(prompts)(images)
        pixels = (images - 0.5) / 0.25
        image, text, scale = network(pixels, tokenize(prompts, MINI))
    assert torch.allclose(ours, scale * image @ text.T, atol=1e-4)


def test_real_architectures_can_be_loaded_and_run() -> None:
    architecture = load_architecture("open_clip:ViT-B-32-quickgelu")
    torch.manual_seed(0)
    network = architecture.build().eval()
    reference = open_clip.create_model("ViT-B-32-quickgelu").eval()
    reference.load_state_dict(network.state_dict())
    images = torch.rand(2, 3, 32, 32)
    tokens = open_clip.get_tokenizer("ViT-B-32-quickgelu")(["a cat", "a dog"])
    large = functional.interpolate(images, (224, 224), mode="bicubic", align_corners=False)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (architecture.mean, architecture.std))
    with torch.no_grad():
        logits = Model("random", "", network, architecture).classifier(["a cat", "a dog"])(images)
        image = reference.encode_image((large - mean) / std, normalize=True)
        text = reference.encode_text(tokens, normalize=True)
    assert torch.allclose(logits, reference.logit_scale.exp() * image @ text.T, atol=1e-4)


def test_a_prediction_does_not_depend_on_the_batch(card_path: Path) -> None:
    classifier = load_model(str(card_path), "mini").classifier(["a", "b", "c"]).double()
    images = torch.rand(9, 3, 32, 32, dtype=torch.float64)
    assert torch.allclose(classifier(images)[4], classifier(images[4:5])[0], atol=1e-12)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_logits_and_gradients_are_bitwise_independent_of_batch_and_threads(threads: int) -> None:
    model = load_model("clip", "mini")
    many = model.classifier([f"a photo of {n}." for n in range(40)])
    few = ZeroShotClassifier(many.encoder, many.text_features[:3], many.scale)
    images = torch.rand(23, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def found(classifier: nn.Module, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = images[part].clone().requires_grad_()
        logits = classifier(leaf)[:, :3]
        (gradient,) = torch.autograd.grad(
            functional.cross_entropy(logits, torch.zeros(len(leaf)).long(), reduction="sum"), leaf
        )
        return logits.detach(), gradient

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = found(many, slice(0, 23))
        torch.set_num_threads(threads)
        for classifier in (few, many):
            for part in (slice(0, 1), slice(3, 5), slice(4, 7), slice(6, 11), slice(11, 23), slice(0, 23)):
                for own, all_of_it in zip(found(classifier, part), whole, strict=True):
                    assert torch.equal(own, all_of_it[part]), part
    finally:
        torch.set_num_threads(before)


def test_gradients_are_computed_for_pixels_but_not_for_weights(card_path: Path) -> None:
    classifier = load_model(str(card_path), "mini").classifier(["a", "b"])
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    classifier(images)[:, 0].sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_a_file_with_a_wrong_digest_is_refused(card_path: Path) -> None:
    image = card_path.parent / "image.safetensors"
    image.write_bytes(image.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match="sha256"):
        load_model(str(card_path), "mini")


def _weights(path: Path) -> Weights:
    return Weights(path.name, sha256_of(path))


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(UserError, match="not a complete safetensors"):
        load_weights(tmp_path, _weights(path))


def test_a_pickle_with_code_is_refused_without_running_it(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (Path.touch, (marker,))

    for name in ("w.pt", "w.bin"):
        path = tmp_path / name
        path.write_bytes(pickle.dumps({"a": Evil()}))
        with pytest.raises(UserError, match="none of it was run"):
            load_weights(tmp_path, _weights(path))
        torch.save({"a": Evil()}, path)
        with pytest.raises(UserError, match="none of it was run"):
            load_weights(tmp_path, _weights(path))
    assert not marker.exists()


def test_weights_with_nan_or_infinite_values_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"good": torch.zeros(3), "bad": torch.tensor([1.0, float("nan")])}, path)
    with pytest.raises(UserError, match="bad"):
        load_weights(tmp_path, _weights(path))


def test_weights_outside_their_folder_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    (tmp_path / "card").mkdir()
    with pytest.raises(UserError, match="is outside the folder"):
        load_weights(tmp_path / "card", Weights("../w.safetensors", "0"))


def test_weights_of_another_shape_are_refused(card_path: Path) -> None:
    card = read_card(card_path)
    path = card_path.parent / "other.safetensors"
    save_file({"conv9.weight": torch.zeros(2)}, path)
    write_card(dataclasses.replace(card, image=_weights(path)), card_path)
    with pytest.raises(UserError, match=r"do not fit|missing"):
        load_model(str(card_path), "mini")


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "a"}', '{"name":"a","architecture":"mini","image":1,"text":2}'])
def test_broken_cards_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "card.json"
    path.write_text(text)
    with pytest.raises(UserError, match="card"):
        read_card(path)


def test_extra_fields_of_a_card_are_refused(card_path: Path) -> None:
    values = json.loads(card_path.read_text())
    card_path.write_text(json.dumps({**values, "run": "rm -rf"}))
    with pytest.raises(UserError, match="run: unknown field"):
        read_card(card_path)


def test_unknown_model_names_are_refused() -> None:
    with pytest.raises(UserError, match="unknown model"):
        find_card("../../etc/passwd", "mini")
    with pytest.raises(UserError, match="open_clip architecture"):
        load_model("open_clip:ViT-B-33/openai", "mini")
    with pytest.raises(UserError, match="pretrained tag"):
        load_model("open_clip:ViT-B-32/opennai", "mini")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("ViT-B-32/openai", "trained with QuickGELU.*use open_clip:ViT-B-32-quickgelu/openai"),
        ("ViT-B-32-quickgelu/laion2b_s34b_b79k", "pretrained tag"),
    ],
)
def test_open_clip_weights_with_another_activation_are_refused(reference: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_model(f"open_clip:{reference}", "mini")


def test_open_clip_weights_use_their_own_mean_and_std(vit: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_clip, "create_model", lambda name, pretrained: vit)
    settings = open_clip.get_pretrained_cfg("ViT-B-32", "laion2b_s34b_b79k")
    first = load_model("open_clip:ViT-B-32/laion2b_s34b_b79k", "mini")
    halves = {**settings, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: halves)
    second = load_model("open_clip:ViT-B-32/laion2b_e16", "mini")
    assert first.architecture.mean == tuple(settings["mean"]) and second.architecture.mean == (0.5, 0.5, 0.5)
    # The same weights with another normalisation are another model, so the digest differs.
    assert first.digest != second.digest


def test_the_image_encoder_resizes_images() -> None:
    encoder = ImageEncoder(MINI.build().visual, MINI).eval()
    images = torch.rand(2, 3, 8, 8)
    large = functional.interpolate(images, (32, 32), mode="bicubic", align_corners=False)
    assert torch.allclose(encoder(images), encoder(large))


def test_text_embeddings_of_a_class_are_averaged_and_normalised() -> None:
    model = load_model("clip", "mini")
    one, two, other = model.text_features(["a red circle", "a circle", "a blue square"])
    ensemble = model.text_features([("a red circle", "a circle"), ("a blue square", "a blue square")])
    mean = (one + two) / 2
    assert torch.allclose(ensemble[0], mean / mean.norm(), atol=1e-6) and torch.allclose(ensemble[1], other, atol=1e-6)
    assert not torch.allclose(ensemble[0], one, atol=1e-3)


def test_several_prompt_templates_give_several_texts_per_class() -> None:
    ensemble = dataclasses.replace(SHAPES, prompt=("one {}", "two {}s"))
    assert ensemble.prompts[0] == ("one circle", "two circles") and SHAPES.prompts[0] == "a picture of a circle"
    with pytest.raises(UserError, match="the prompt 'three' does not contain"):
        dataclasses.replace(SHAPES, prompt=("one {}", "three"))
