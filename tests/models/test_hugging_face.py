"""Models on the Hugging Face hub, from a made-up hub: logits, identity, a run, and messages of failures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from made_up_hub import served, write_clip

from robustbench_vlm import load_model
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.models.hugging_face import pixel_difference
from robustbench_vlm.models.in_memory import zero_shot

TEXTS = ["a photo of a cat.", "a photo of a dog."]
LOADED = """
import json, sys, torch
from robustbench_vlm import load_model
model = load_model(sys.argv[1])
images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
logits = model.classifier(["a photo of a cat.", "a photo of a dog."])(images)
print(json.dumps([model.name, model.digest, list(model.doubts), logits.tolist()]))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a hub with the models org/clip and org/other."""
    root = tmp_path_factory.mktemp("hub")
    write_clip(root / "org" / "clip")
    write_clip(root / "org" / "other", seed=1)
    (root / "org" / "text").mkdir()
    (root / "org" / "text" / "config.json").write_text('{"model_type": "bert", "hidden_size": 32}')
    return root


def run(address: str, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"VLMBENCH_CACHE": str(home / "cache"), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=home, timeout=200
    )


def test_a_model_of_the_hub_gives_the_logits_of_transformers(hub: Path, tmp_path: Path) -> None:
    model, processor = write_clip(tmp_path / "again")
    with served(hub) as address:
        answers = [run(address, tmp_path, "-c", LOADED, name) for name in ("hf:org/clip", "hf:org/other@main")]
    # The second time without the hub: from the cache in VLMBENCH_CACHE.
    offline = run("http://127.0.0.1:9", tmp_path, "-c", LOADED, "hf:org/clip")
    assert all(answer.returncode == 0 for answer in [*answers, offline]), [answer.stderr for answer in answers]
    first, other, again = (json.loads(answer.stdout) for answer in [*answers, offline])
    assert first == again and first[:1] == ["hf:org/clip"] and first[2] == [] and len(first[1]) == 64
    assert other[1] != first[1]
    assert (tmp_path / "cache" / "hub").is_dir()
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = processor(text=TEXTS, padding="max_length", max_length=77, return_tensors="pt")
    mean, std = (
        torch.tensor(each).view(1, 3, 1, 1)
        for each in (processor.image_processor.image_mean, processor.image_processor.image_std)
    )
    with torch.no_grad():
        theirs = model(pixel_values=(images - mean) / std, **tokens).logits_per_image
    assert torch.allclose(torch.tensor(first[3]), theirs, atol=1e-5)


def test_pixels_are_those_of_the_processor_unless_it_shrinks_images(tmp_path: Path) -> None:
    made = zero_shot(*write_clip(tmp_path), name="clip")
    _, processor = write_clip(tmp_path)
    assert pixel_difference(made, processor, 32) < 1e-6
    # The processor filters when it shrinks; the classifier, which must be differentiable at every pixel, does not.
    assert pixel_difference(made, processor, 64) > 0.01


def test_the_command_line_runs_a_model_of_the_hub(hub: Path, tmp_path: Path) -> None:
    options = "--attack fgsm --dataset shapes --eps 1/255 --samples 4 --json"
    with served(hub) as address:
        answer = run(address, tmp_path, "-m", "robustbench_vlm", "run", "--model", "hf:org/clip", *options.split())
        assert answer.returncode == 0, answer.stderr
        found = json.loads(answer.stdout)
        compared = run(
            address, tmp_path, "-m", "robustbench_vlm", "compare", "hf:org/clip", "clip", "--attack", "fgsm", "--json"
        )
    assert "hf:org/clip" in answer.stdout and found
    assert "Traceback" not in compared.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:org/nonesuch", "check ORG/NAME"),
        ("hf:org/gated", "ask for access"),
        ("hf:org/text", "dual encoder"),
        ("hf:org", "hf:ORG/NAME"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_explained(hub: Path, tmp_path: Path, name: str, message: str) -> None:
    with served(hub, gated=("org/gated",)) as address:
        answer = run(
            address, tmp_path, "-m", "robustbench_vlm", "run", "--model", name, "--dataset", "shapes", "--samples", "4"
        )
    assert answer.returncode == 2 and "Traceback" not in answer.stderr, answer.stderr[-2000:]
    assert message in " ".join(answer.stderr.split()), answer.stderr


def test_the_name_of_an_adapter_is_checked_before_the_base_is_loaded() -> None:
    with pytest.raises(UserError, match="the adapter 'no_such_folder' is not a folder"):
        load_model("hf:org/unknown+no_such_folder")
