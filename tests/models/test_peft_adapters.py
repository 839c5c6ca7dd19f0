"""Adapters of peft: logits equal those of peft, adapters that do not fit are refused, and names on the hub work."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from made_up_hub import served, write_clip
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.models.in_memory import zero_shot
from robustbench_vlm.models.peft_adapters import with_adapter

pytestmark = [
    # peft calls a function of transformers that is deprecated.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    # peft looks for changed embeddings on the hub, which a test must not reach.
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]
TEXTS = ["a photo of a cat.", "a photo of a dog."]
CONFIGS: dict[str, Any] = {
    "LoRA": lambda: peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    "DoRA with a whole layer": lambda: peft.LoraConfig(
        target_modules=["fc1"],
        use_dora=True,
        modules_to_save=["visual_projection"],
        init_lora_weights=False,
        task_type="FEATURE_EXTRACTION",
    ),
    "IA3": lambda: peft.IA3Config(
        target_modules=["k_proj", "fc2"], feedforward_modules=["fc2"], init_ia3_weights=False
    ),
    "LoHa": lambda: peft.LoHaConfig(target_modules=["q_proj"], init_weights=False),
    "LoKr": lambda: peft.LoKrConfig(target_modules=["q_proj"], init_weights=False),
}


def pixels() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_clip(folder)
    return folder


def adapted(base: Path, config: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return peft.get_peft_model(CLIPModel.from_pretrained(base), config).eval()


@functools.cache
def processor(base: Path) -> Any:
    return CLIPProcessor.from_pretrained(base)


def logits(model: Any, base: Path) -> Tensor:
    return zero_shot(model, processor(base), name="a-model").classifier(TEXTS)(pixels())


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_merged_adapter_gives_the_logits_of_peft(kind: str, base: Path, tmp_path: Path) -> None:
    theirs = adapted(base, CONFIGS[kind]())
    theirs.save_pretrained(tmp_path)
    in_memory = logits(theirs, base)
    ours = logits(with_adapter(CLIPModel.from_pretrained(base), tmp_path, "hf:x/y", base=str(base)), base)
    assert torch.allclose(ours, logits(theirs.merge_and_unload(), base), atol=1e-5)
    assert torch.allclose(ours, in_memory, atol=1e-5)
    assert not torch.allclose(ours, logits(CLIPModel.from_pretrained(base), base), atol=1e-3)


def test_a_model_of_peft_in_memory_is_pinned(base: Path) -> None:
    first, second = (zero_shot(adapted(base, CONFIGS["LoRA"]()), processor(base), name="lora") for _ in range(2))
    plain = zero_shot(CLIPModel.from_pretrained(base), processor(base), name="lora")
    assert first.digest == second.digest != plain.digest and not first.doubts


def test_another_base_model_is_told(base: Path, tmp_path: Path) -> None:
    adapted(base, CONFIGS["LoRA"]()).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"as its base model, but hf:org/clip applies it to 'org/clip'"):
        with_adapter(CLIPModel.from_pretrained(base), tmp_path, "hf:org/clip", base="org/clip")


def without_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def with_settings(**changed: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))

    return change


def with_weights(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        save_file(change(load_file(path)), path)

    return write


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_weights, "pickled weights"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "adapter_config.json"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), "JSON object, got a list"),
        (with_settings(peft_type="PROMPT_TUNING"), "expected one of IA3, LOHA, LOKR, LORA"),
        (with_settings(megatron_config={"a": 1}, megatron_core="os"), "Megatron"),
        (with_settings(nonesuch=1), "unknown setting 'nonesuch'"),
        (with_settings(r=4), "does not fit"),
        (with_settings(r=-1), "does not fit"),
        (with_settings(target_modules=["nonesuch"]), "does not fit"),
        (with_settings(target_modules=["q_proj", "k_proj", "v_proj"]), "lacks the weight"),
        (with_settings(target_modules=["q_proj"]), "has a weight that does not fit the model"),
        (with_weights(lambda state: dict(list(state.items())[1:])), "lacks the weight"),
        (with_weights(lambda state: {**state, "other": torch.ones(1)}), "has a weight that does not fit the model"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"no"), "does not fit"),
    ],
)
def test_an_adapter_that_cannot_be_used_is_refused(
    change: Callable[[Path], None], message: str, base: Path, tmp_path: Path
) -> None:
    adapted(base, CONFIGS["LoRA"]()).save_pretrained(tmp_path)
    change(tmp_path)
    with pytest.raises(UserError, match=message):
        with_adapter(CLIPModel.from_pretrained(base), tmp_path, "hf:x/y", base=str(base))


PROGRAM = """
import json, torch
from robustbench_vlm import evaluate, load_model
from robustbench_vlm.core.errors import UserError

images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
found = {}
for name in ("hf:org/clip", "hf:org/clip+org/lora@main", "hf:org/clip+lora", "hf:org/lora", "hf:org/clip+org/pickled",
             "hf:org/clip+org/nonesuch", "hf:org/clip+nonesuch"):
    try:
        model = load_model(name)
        found[name] = model.digest, model.classifier(["a photo of a cat.", "a photo of a dog."])(images).tolist()
    except UserError as error:
        found[name] = str(error)
table = evaluate("hf:org/clip+lora", "fgsm", datasets="shapes", samples=2, workers=1).tables[0]
print(json.dumps([found, table.model, table.folder.is_dir()]))
"""


def test_an_adapter_on_the_hub_or_in_a_folder_follows_a_plus(base: Path, tmp_path: Path) -> None:
    hub = tmp_path / "hub" / "org"
    write_clip(hub / "clip")
    theirs = adapted(base, CONFIGS["LoRA"]())
    for folder in (hub / "lora", hub / "pickled", tmp_path / "lora"):
        theirs.save_pretrained(folder)
        with_settings(base_model_name_or_path="org/clip")(folder)
    without_weights(hub / "pickled")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {
        "HF_HOME": str(tmp_path / "hf"),
        "VLMBENCH_CACHE": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": "1",
    }
    with served(tmp_path / "hub") as address:
        answer = subprocess.run(
            [sys.executable, "-W", "error:.*base model", "-c", PROGRAM],
            capture_output=True,
            text=True,
            env={**environment, "HF_ENDPOINT": address},
            cwd=tmp_path,
        )
    assert answer.returncode == 0, answer.stderr
    found, name, is_kept = json.loads(answer.stdout)
    plain, on_hub, in_folder, adapter, pickled, missing, neither = found.values()
    assert on_hub == in_folder and on_hub[0] != plain[0] and is_kept and name == "hf:org/clip+lora"
    assert torch.allclose(torch.tensor(on_hub[1]), logits(theirs.merge_and_unload(), base), atol=1e-5)
    assert "write hf:org/clip+org/lora" in adapter and "adapter_model.bin, are not read" in pickled
    assert "check ORG/NAME" in missing and "is not a folder" in neither
