"""Models in memory: logits equal those of the source library, and records, resume and gates hold as for others."""

import copy
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pandas
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from robustbench_vlm import compare, evaluate, load_model, zero_shot
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.engine.results import RunResult
from robustbench_vlm.leaderboard.submit import make_submission
from robustbench_vlm.models.in_memory import InMemoryModel

HALF = (0.5, 0.5, 0.5)
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGES = {**SMALL, "image_size": 32, "patch_size": 8}
TEXTS = ["a photo of a cat.", "a photo of a dog.", "7"]


def pixels(side: int = 32) -> Tensor:
    return torch.rand(5, 3, side, side, generator=torch.Generator().manual_seed(3))


def embed(texts: list[str]) -> Tensor:
    """Return hand-made text features of 16 numbers."""
    rows = [torch.randn(16, generator=torch.Generator().manual_seed(sum(map(ord, text)))) for text in texts]
    return torch.stack(rows)


def cnn(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, 16))


def by_hand(seed: int = 0, **changed: Any) -> InMemoryModel:
    settings: dict[str, Any] = {
        "image_encoder": cnn(seed),
        "text_encoder": embed,
        "logit_scale": 50.0,
        "image_size": 32,
        "mean": HALF,
        "std": HALF,
        "name": "by-hand",
    }
    return zero_shot(**settings | changed)


def clip_of_transformers(seed: int = 0) -> CLIPModel:
    config = CLIPConfig(text_config={**SMALL, "eos_token_id": 49407}, vision_config=IMAGES, projection_dim=16)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CLIPModel(config).eval()


def siglip_of_open_clip(seed: int = 0) -> nn.Module:
    """Return a small network with the class and the text encoder of SigLIP in open_clip."""
    vision = {"image_size": 32, "patch_size": 8, "layers": 2, "width": 32, "head_width": 16}
    text = {"context_length": 24, "width": 32, "heads": 2, "layers": 2}
    siglip = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network: nn.Module = open_clip.CustomTextCLIP(16, vision, text | siglip, init_logit_bias=-10.0)
    return network.eval()


def siglip_in_memory(seed: int = 0, tokenizer: Any = None) -> InMemoryModel:
    tokenizer = tokenizer or open_clip.SimpleTokenizer(context_length=24)
    return zero_shot(siglip_of_open_clip(seed), tokenizer, mean=HALF, std=HALF, name="siglip")


def transformers_in_memory(seed: int = 0, tokenizer: Any = None) -> InMemoryModel:
    tokenizer = tokenizer or open_clip.SimpleTokenizer(context_length=24)
    return zero_shot(clip_of_transformers(seed), tokenizer, mean=HALF, std=HALF, name="transformers")


MADE: dict[str, Callable[[int], InMemoryModel]] = {
    "open_clip": siglip_in_memory,
    "transformers": transformers_in_memory,
    "encoders": by_hand,
}
"""A model from each source, made with a seed."""


def test_a_transformers_clip_gives_its_own_logits() -> None:
    model, tokenizer = clip_of_transformers(), open_clip.SimpleTokenizer(context_length=77)
    made = zero_shot(model, tokenizer, mean=HALF, std=HALF)
    with torch.no_grad():
        theirs = model(input_ids=tokenizer(TEXTS), pixel_values=(pixels() - 0.5) / 0.5).logits_per_image
    assert torch.allclose(made.classifier(TEXTS)(pixels()), theirs, atol=1e-5)
    assert (made.name, made.image_size, made.doubts) == ("CLIPModel", 32, ())


def test_a_transformers_siglip_keeps_its_bias() -> None:
    torch.manual_seed(0)
    texts = {**SMALL, "max_position_embeddings": 64, "vocab_size": 50000}
    model = SiglipModel(SiglipConfig(text_config=texts, vision_config=IMAGES)).eval()
    model.logit_scale.data.fill_(2.0)
    model.logit_bias.data.fill_(-10.0)
    tokenizer = open_clip.SimpleTokenizer(context_length=64)
    made = zero_shot(model, tokenizer, mean=HALF, std=HALF)
    with torch.no_grad():
        theirs = model(input_ids=tokenizer(TEXTS), pixel_values=(pixels() - 0.5) / 0.5).logits_per_image
    assert torch.allclose(made.classifier(TEXTS)(pixels()), theirs, atol=1e-5) and made.bias == -10.0


@pytest.mark.parametrize("name", ["RN50", "coca_ViT-B-32", "ViT-S-32-alt"])
def test_open_clip_models_give_their_own_logits(name: str) -> None:
    torch.manual_seed(0)
    model = open_clip.create_model(name).eval()
    made = zero_shot(model, open_clip.SimpleTokenizer(context_length=model.context_length), name="a-model")
    side = made.image_size
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (model.visual.image_mean, model.visual.image_std))
    with torch.no_grad():
        images = model.encode_image((pixels(side)[:2] - mean) / std, normalize=True)
        texts = model.encode_text(open_clip.tokenize(TEXTS, model.context_length), normalize=True)
        theirs = model.logit_scale.exp() * images @ texts.T
    assert torch.allclose(made.classifier(TEXTS)(pixels(side)[:2]), theirs, atol=1e-5) and not made.doubts


def test_a_network_of_the_track_has_the_same_verdicts_in_memory(tmp_path: Path) -> None:
    named = load_model("clip")
    network, architecture = named.network, named.architecture  # type: ignore[union-attr]
    made = zero_shot(
        network,
        open_clip.SimpleTokenizer(context_length=24),
        image_size=32,
        mean=architecture.mean,
        std=architecture.std,
        name="clip-in-memory",
    )
    result = evaluate([made, "clip"], "pgd-3", datasets="shapes", eps="1/255", out=tmp_path)
    first, second = (table.scores[0] for table in result.tables)
    assert (first.clean, first.robust) == (second.clean, second.robust)
    found = compare(["clip-in-memory", "clip"], "pgd-3", eps="1/255", runs=tmp_path)
    assert [model.name for model in found.models] and not made.doubts


def test_the_user_s_module_is_copied_and_left_as_it_is() -> None:
    network = cnn().train()
    made = by_hand(image_encoder=network)
    before = made.classifier(TEXTS)(pixels())
    assert network.training and all(each.requires_grad for each in network.parameters())
    with torch.no_grad():
        network[0].weight.zero_()  # type: ignore[index, union-attr, operator]
    assert torch.equal(made.classifier(TEXTS)(pixels()), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_in_another_dtype_gets_pixels_of_this_dtype(dtype: torch.dtype) -> None:
    tokenizer = open_clip.SimpleTokenizer(context_length=24)
    for made, same in (
        (by_hand(), by_hand(image_encoder=cnn().to(dtype))),
        (siglip_in_memory(), zero_shot(siglip_of_open_clip().to(dtype), tokenizer, mean=HALF, std=HALF)),
    ):
        classifier = same.classifier(TEXTS)
        images = pixels().requires_grad_()
        logits, expected = classifier(images), made.classifier(TEXTS)(images)
        assert logits.dtype == same.encoder(images).dtype == torch.float32
        assert torch.allclose(logits / same.scale, expected / made.scale, atol=0.05)
        (gradient,) = torch.autograd.grad(logits.sum(), images)
        assert gradient.dtype == torch.float32 and bool(gradient.any())
        assert same.digest != made.digest


@pytest.mark.parametrize("source", MADE)
def test_records_are_kept_and_changed_weights_are_computed_again(source: str, tmp_path: Path) -> None:
    def passes(model: InMemoryModel) -> tuple[float, RunResult]:
        result = evaluate(model, ["fgsm"], datasets=["shapes", "colours"], eps="1/255", samples=2, out=tmp_path)
        return sum(table.seconds for table in result.tables), result

    first, result = passes(MADE[source](0))
    again, same = passes(MADE[source](0))
    other, changed = passes(MADE[source](1))
    assert first > 0 and again == 0 and other > 0
    assert [table.fingerprint for table in same.tables] == [table.fingerprint for table in result.tables]
    assert changed.tables[0].fingerprint != result.tables[0].fingerprint


def test_a_changed_closure_value_is_measured_again_for_the_same_model(tmp_path: Path) -> None:
    factors = [1.0]
    made = by_hand(text_encoder=lambda texts: embed(texts) * factors[0])

    def seconds() -> float:
        result = evaluate(made, "fgsm", datasets="shapes", eps="1/255", samples=2, out=tmp_path)
        assert "unpinned" in result.tables[0].scores[0].warnings
        return sum(table.seconds for table in result.tables)

    assert seconds() > 0 and seconds() == 0
    factors[0] = -1.0
    assert seconds() > 0


def test_a_module_that_changed_after_zero_shot_is_refused(tmp_path: Path) -> None:
    network = cnn()
    made, kept = by_hand(image_encoder=network), by_hand(image_encoder=copy.deepcopy(network))
    network.train()
    evaluate(made, "fgsm", datasets="shapes", eps="1/255", samples=2, out=tmp_path)
    with torch.no_grad():
        network[0].weight.mul_(-1)  # type: ignore[index, union-attr, operator]
    with pytest.raises(UserError, match="call zero_shot again"):
        evaluate(made, "fgsm", datasets="shapes", eps="1/255", samples=2, out=tmp_path)
    evaluate(kept, "fgsm", datasets="shapes", eps="1/255", samples=2, out=tmp_path)


def test_the_digest_covers_the_settings() -> None:
    for setting in ({"mean": (0.4, 0.5, 0.5)}, {"logit_scale": 20.0}, {"interpolation": "bilinear"}):
        assert by_hand(**setting).digest != by_hand().digest


PROGRAM = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {folder!r}]
from test_in_memory import MADE
from robustbench_vlm import evaluate

def show(progress):
    print(progress.done, flush=True)

evaluate(MADE[{source!r}](0), "pgd-5", datasets=["shapes", "colours"], samples=100, out="runs", on_progress=show)
"""


@pytest.mark.parametrize("source", MADE)
def test_a_killed_run_goes_on_where_it_stopped(source: str, tmp_path: Path) -> None:
    program = PROGRAM.format(tests=str(Path(__file__).parents[1]), folder=str(Path(__file__).parent), source=source)
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        counts = (int(line) for line in process.stdout)
        next(count for count in counts if 0 < count < 200)
        process.send_signal(signal.SIGKILL)
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    kept, *_, last = map(int, answer.stdout.split())
    assert 0 < kept < 200 and last == 200


def test_a_folder_of_images_and_a_prompt_are_taken(tmp_path: Path) -> None:
    for number, (name, colour) in enumerate([("red thing", (255, 0, 0)), ("blue thing", (0, 0, 255))] * 2):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 32), colour).save(folder / f"{number}.png")
    result = evaluate(
        by_hand(), "fgsm", images=tmp_path / "images", prompt="one {}.", eps="1/255", norm="Linf", out=tmp_path / "runs"
    )
    frame = result.to_pandas()
    assert isinstance(frame, pandas.DataFrame) and list(frame.n) == [4]
    assert "unpinned" not in str(result.tables[0].scores[0].warnings)


@pytest.mark.parametrize("source", MADE)
def test_a_model_that_cannot_be_pinned_says_so_and_is_not_submitted(source: str, tmp_path: Path) -> None:
    tokenizer = open_clip.SimpleTokenizer(context_length=24)
    made = {
        "open_clip": lambda: siglip_in_memory(tokenizer=lambda texts: tokenizer(texts)),
        "transformers": lambda: transformers_in_memory(tokenizer=lambda texts: tokenizer(texts)),
        "encoders": lambda: by_hand(text_encoder=lambda texts: float(tokenizer.context_length) * embed(texts)),
    }[source]()
    assert made.digest.startswith("unpinned:") and made.doubts
    result = evaluate(made, "fgsm", datasets="shapes", eps="5/255", out=tmp_path)
    assert "unpinned" in result.tables[0].scores[0].warnings
    with pytest.raises(UserError, match="memory"):
        make_submission(result.tables[0].folder.parent, date="2026-01-02")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: zero_shot(), "needs an image encoder and a text encoder"),
        (lambda: zero_shot(cnn()), "needs the tokenizer"),
        (lambda: zero_shot(cnn(), embed), "neither encode_image"),
        (lambda: zero_shot(5, embed), "needs a torch module, got int"),
        (lambda: by_hand(logit_scale=None), "needs logit_scale"),
        (lambda: by_hand(logit_scale=-1), "positive"),
        (lambda: by_hand(mean=(123.0, 117.0, 104.0)), "divide by 255"),
        (lambda: by_hand(std=(0.0, 1.0, 1.0)), "std"),
        (lambda: by_hand(image_size=0), "image_size"),
        (lambda: by_hand(interpolation="nearest"), "bicubic"),
        (lambda: by_hand(name="../up"), "letters"),
        (lambda: by_hand(image_size=(32, 32)), r"image_size must be an integer .*, got \(32, 32\)"),
        (lambda: by_hand(image_size="32"), "image_size must be an integer .*, got '32'"),
        (lambda: by_hand(image_size=48), "of 48 x 48 pixels, from image_size=48 .*shapes cannot be multiplied"),
        (lambda: by_hand(mean=0.5), r"mean must be three numbers .*, got 0.5: give one .* \(0.5, 0.5, 0.5\)"),
        (lambda: by_hand(logit_scale="100"), "logit_scale must be a positive number, got '100'"),
        (lambda: by_hand(logit_bias="none"), "logit_bias must be a number, got 'none'"),
        (lambda: by_hand(name=5), "letters, .*, got 5"),
        (lambda: by_hand(text_encoder=embed(TEXTS)), r"got a tensor of shape \[3, 16\].*text_encoder=lambda texts"),
        (lambda: by_hand(image_encoder="cnn"), "image_encoder must be a torch module or a function, got str"),
        (lambda: siglip_in_memory(tokenizer=open_clip.SimpleTokenizer(context_length=30)), "the text encoder cannot"),
        (lambda: transformers_in_memory(tokenizer=open_clip.SimpleTokenizer(context_length=99)), "context length"),
        (lambda: zero_shot(siglip_of_open_clip(), 5), "needs a tokenizer, got int"),
        (lambda: zero_shot(clip_of_transformers(), embed, image_size=64, mean=HALF, std=HALF), "image_size=64"),
        (lambda: by_hand(text_encoder=lambda texts: torch.ones(len(texts), 5)), "same number"),
        (lambda: by_hand(text_encoder=lambda texts: "none"), "text encoder must return"),
        (lambda: by_hand(image_encoder=nn.Conv2d(3, 8, 3)), "image encoder must return"),
        (lambda: evaluate(cnn(), "fgsm"), "got Sequential: write zero_shot"),
        (lambda: evaluate(["clip", 5], "fgsm"), "got int"),
        (lambda: evaluate(by_hand(), "fgsm", workers=-1), "workers must be an integer of 0 or more, got -1"),
        (lambda: evaluate(by_hand(), "fgsm", batch_size="2"), "batch_size must be an integer .* got '2'"),
        (lambda: evaluate("memory:by-hand", "fgsm", workers=1), "exists only in the Python process"),
        (lambda: evaluate(by_hand(name="agft"), "fgsm"), "a model of the track"),
        (lambda: evaluate([by_hand(), by_hand(1)], "fgsm"), "two models in memory"),
        (lambda: evaluate("clip", "fgsm", name="mine", workers=1), "leave name out"),
        (lambda: evaluate(by_hand(), "fgsm", workers=2), "leave workers out"),
    ],
)
def test_a_wrong_argument_is_named_with_the_accepted_forms(
    call: Callable[[], Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        call()


def test_several_prompts_of_a_class_are_averaged() -> None:
    made = by_hand()
    features = made.text_features([("a", "b"), ("c", "c")])
    one = nn.functional.normalize(nn.functional.normalize(embed(["a", "b"]), dim=-1).mean(dim=0), dim=-1)
    assert torch.allclose(features[0], one, atol=1e-6)
