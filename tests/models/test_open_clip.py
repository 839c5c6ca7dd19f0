"""Architectures of open_clip: logits equal open_clip's own for every family, and tokenizers are part of a model."""

import os
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch

from robustbench_vlm import evaluate, load_model
from robustbench_vlm.models.classifier import Model, ZeroShotClassifier
from robustbench_vlm.models.convert import convert
from robustbench_vlm.models.open_clip import (
    context_length,
    has_own_tokenizer,
    load_architecture,
    load_tokenizer,
    tokenizer_digest,
)

FAMILIES = {
    "CLIP, residual network": "RN50",
    "CLIP, vision transformer": "ViT-S-32-alt",
    "CLIP with QuickGELU": "ViT-B-32-quickgelu",
    "CoCa": "coca_ViT-B-32",
    "ConvNeXt": "convnext_base",
    "EVA02": "EVA02-B-16",
    "MobileCLIP": "MobileCLIP-S1",
    "MobileCLIP 2": "MobileCLIP2-S0",
    "PE-Core": "PE-Core-T-16-384",
    "SigLIP": "ViT-B-16-SigLIP",
    "Swin": "swin_base_patch4_window7_224",
    "ViTamin": "ViTamin-S",
    "timm": "vit_medium_patch16_gap_256",
}
"""A small member of each family that open_clip builds without the network."""


@pytest.mark.parametrize("name", FAMILIES.values(), ids=FAMILIES)
def test_logits_are_those_of_open_clip(name: str) -> None:
    torch.manual_seed(0)
    architecture = load_architecture(f"open_clip:{name}")
    network = architecture.build().eval().requires_grad_(False)
    side, length = architecture.image_size, context_length(architecture)
    images = torch.rand(2, 3, side, side)
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (architecture.mean, architecture.std))
    tokens = open_clip.tokenize(["a cat", "a dog"], context_length=length)
    if has_own_tokenizer(architecture):  # it has to be fetched, and any tokens of its vocabulary do here
        tokens = torch.randint(1, 1000, (2, length))
    with torch.no_grad():
        texts = network.encode_text(tokens, normalize=True)  # type: ignore[operator]
        theirs = network.encode_image((images - mean) / std, normalize=True) @ texts.T  # type: ignore[operator]
        theirs = theirs * network.get_parameter("logit_scale").exp()
        model = Model(name, "", network, architecture)
        ours = ZeroShotClassifier(model.encoder, texts, model.scale, bias=model.bias)(images)
        assert torch.allclose(ours - model.bias, theirs, atol=1e-5)
        if not has_own_tokenizer(architecture):
            assert torch.allclose(model.text_features(["a cat", "a dog"]), texts, atol=1e-6)
            assert tokenizer_digest(architecture) == ()


@pytest.mark.parametrize("name", ["MobileCLIP2-S0/dfndr2b", "PE-Core-T-16-384/meta", "ViTamin-S/datacomp1b"])
def test_a_card_describes_an_architecture_with_its_own_text_encoder(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = open_clip.create_model(name.partition("/")[0]).eval()
    torch.save(network.state_dict(), tmp_path / "mine.pt")
    card = convert(tmp_path / "mine.pt", track="mini", base=f"open_clip:{name}", name="mine", folder=tmp_path)
    model = load_model(card)
    assert isinstance(model, Model) and model.architecture.open_clip_name == name.partition("/")[0]
    side, length = model.image_size, context_length(model.architecture)
    images, texts = torch.rand(1, 3, side, side), ["a cat", "a dog"]
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (model.architecture.mean, model.architecture.std))
    with torch.no_grad():
        found = network.encode_image((images - mean) / std, normalize=True)
        theirs = found @ network.encode_text(open_clip.tokenize(texts, length), normalize=True).T
        assert torch.allclose(model.classifier(texts)(images), theirs * network.logit_scale.exp(), atol=1e-5)
    if name.startswith("MobileCLIP2"):
        table = evaluate(card, "fgsm", datasets="shapes", samples=1, out=tmp_path / "runs", workers=1).tables[0]
        assert table.model == "mine" and table.scores[0].n == 1


def test_the_pixel_constants_are_those_of_the_weights() -> None:
    assert load_architecture("open_clip:ViT-B-16-SigLIP").mean == (0.5, 0.5, 0.5)
    assert load_architecture("open_clip:MobileCLIP-S1").std == (1.0, 1.0, 1.0)
    assert load_architecture("open_clip:ViT-B-32").mean == open_clip.OPENAI_DATASET_MEAN


def test_every_architecture_states_its_size_and_context() -> None:
    for name in open_clip.list_models():
        architecture = load_architecture(f"open_clip:{name}")
        assert 100 <= architecture.image_size <= 1024 and 16 <= context_length(architecture) <= 512, name


def test_a_fetched_tokenizer_reads_the_texts_and_is_part_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    load_tokenizer_cache = sys.modules["robustbench_vlm.models.open_clip"]._load_tokenizer
    architecture = load_architecture("open_clip:ViT-B-16-SigLIP")
    found = []
    for first in (1, 2):
        monkeypatch.setattr(
            open_clip, "get_tokenizer", lambda name, first=first: lambda texts: torch.full((len(texts), 64), first)
        )
        load_tokenizer_cache.cache_clear()
        assert load_tokenizer(architecture)(["a"]).tolist() == [[first] * 64]
        found.append(tokenizer_digest(architecture))
    load_tokenizer_cache.cache_clear()
    assert has_own_tokenizer(architecture) and found[0] != found[1]


def test_a_tokenizer_that_cannot_be_fetched_is_named() -> None:
    program = (
        "from robustbench_vlm.models.open_clip import *\n"
        "load_tokenizer(load_architecture('open_clip:ViT-B-16-SigLIP'))(['a'])"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent"}
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert "the tokenizer of open_clip:ViT-B-16-SigLIP is not in the cache" in answer.stderr
    assert "HF_HUB_OFFLINE is set: unset it" in answer.stderr.replace("\n", " ")
