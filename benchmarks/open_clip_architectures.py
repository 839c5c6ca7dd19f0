"""Compare our models with open_clip's own, for every architecture of open_clip at random initialisation.

    python benchmarks/open_clip_architectures.py --out benchmarks/open_clip_architectures.json

Each architecture is built with the same seed by open_clip's factory and by our code. Both classify the same image by
the same texts, and the script reports the largest difference of a logit. Each architecture has its own process, and
only one of its two networks is in memory at a time. Architectures in the report are not measured again, so the script
can be interrupted and started again. Small architectures are measured first.
"""

import gc
import json
import multiprocessing
import re
import resource
import time
from pathlib import Path
from typing import Any
from unittest import mock

import open_clip
import report
import torch
from torch import Tensor, nn

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.models.classifier import Model, ZeroShotClassifier
from robustbench_vlm.models.open_clip import (
    Architecture,
    context_length,
    has_own_tokenizer,
    load_architecture,
    load_tokenizer,
)

RESULTS = Path(__file__).with_suffix(".json")
LIMIT = 1e-5
"""The largest accepted difference of a logit."""
TEXTS = ("a photo of a cat.", "a photo of a dog.", "a red square")
FAMILIES = {
    "CoCa": "coca_",
    "text encoder of transformers": "xlm-roberta|mt5|nllb|roberta",
    "worldwide": "worldwide",
    "SigLIP 2": "SigLIP2",
    "SigLIP": "SigLIP",
    "MobileCLIP 2": "MobileCLIP2",
    "MobileCLIP": "MobileCLIP",
    "EVA": "EVA0",
    "PE-Core": "PE-Core",
    "ViTamin": "ViTamin",
    "CLIPA": "CLIPA",
    "ConvNeXt": "convnext",
    "CLIP, ResNet": "RN",
    "image encoder of timm": "swin_|vit_",
    "CLIP, ViT": "ViT-",
}
"""The families, each with a pattern of names. The first pattern that matches a name decides."""
SIZES = (
    "-[STM][0-9]?(?:-|$)|RN50|RN101|tiny|small|medium|swin",
    "-B(?:-|$)|-S[24]|base|RN50x4",
    "-L(?:-|$)|large|RN50x16",
    "SO400M|-H-|-L2|RN50x64",
    "",
)
"""Patterns of names, ordered by the size of the network. The first pattern that matches a name decides."""
TRANSFORMERS_CONFIGS = {
    "google/mt5-base": "MT5Config",
    "google/mt5-xl": "MT5Config",
    "facebook/nllb-200-distilled-600M": "M2M100Config",
    "facebook/nllb-200-distilled-1.3B": "M2M100Config",
    "roberta-base": "RobertaConfig",
    "xlm-roberta-base": "XLMRobertaConfig",
    "xlm-roberta-large": "XLMRobertaConfig",
}
"""The classes of the configurations that open_clip fetches. Without a network, their default values are used."""


def family(name: str) -> str:
    """Return the family of an architecture."""
    return next(family for family, pattern in FAMILIES.items() if re.match(f".*(?:{pattern})", name))


def size(name: str) -> tuple[int, int]:
    """Return a key that sorts architectures approximately by the time of a forward pass."""
    side = open_clip.get_model_config(name)["vision_cfg"]["image_size"]
    return next(number for number, pattern in enumerate(SIZES) if re.search(pattern, name)), side


def count_parameters(architecture: Architecture) -> int:
    """Return the number of parameters. The network is built without values, so this needs little memory."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in architecture.build().parameters())


def their_logits(name: str, architecture: Architecture, images: Tensor, tokens: Tensor) -> Tensor:
    """Return open_clip's logits, float32 [B, C], of images in [0, 1], float32 [B, 3, H, W]."""
    torch.manual_seed(0)
    network = open_clip.create_model(name, pretrained_text=False).eval()
    side = network.visual.preprocess_cfg["size"]
    if side not in (architecture.image_size, (architecture.image_size,) * 2):
        raise UserError(f"our images have {architecture.image_size} pixels, those of open_clip {side}")
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (architecture.mean, architecture.std))
    features = network.encode_image((images - mean) / std, normalize=True)
    logits: Tensor = network.logit_scale.exp() * features @ network.encode_text(tokens, normalize=True).T
    bias = getattr(network, "logit_bias", None)
    return logits if bias is None else logits + bias


def our_logits(name: str, architecture: Architecture, images: Tensor, tokens: Tensor) -> Tensor:
    """Return our logits, float32 [B, C]. If the tokenizer is not CLIP's, the tokens are used in place of texts."""
    torch.manual_seed(0)
    network: nn.Module = architecture.build().eval()
    model = Model(name, "", network, architecture)
    if has_own_tokenizer(architecture):
        features = network.encode_text(tokens, normalize=True)  # type: ignore[operator]
    else:
        features = model.text_features(TEXTS)
    logits: Tensor = ZeroShotClassifier(model.encoder, features, model.scale, bias=model.bias)(images)
    return logits


def measure(name: str) -> dict[str, Any]:
    """Compare both logits of an architecture and return its row of the report."""
    architecture = load_architecture(f"open_clip:{name}")
    length, side = context_length(architecture), architecture.image_size
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, 3, side, side, generator=generator)
    if has_own_tokenizer(architecture):
        tokens = torch.randint(3, 1000, (len(TEXTS), length), generator=generator)
    else:
        tokens = load_tokenizer(architecture)(list(TEXTS))
    started = time.monotonic()
    with torch.no_grad():
        theirs = their_logits(name, architecture, images, tokens)
        gc.collect()
        with mock.patch("robustbench_vlm.models.classifier._ROWS", 1):  # one image instead of four saves much time
            ours = our_logits(name, architecture, images, tokens)
    difference = float((ours - theirs).abs().max())
    return {
        "result": "equal" if difference <= LIMIT else "different",
        "difference": difference,
        "largest logit": float(theirs.abs().max()),
        "seconds": round(time.monotonic() - started, 1),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def row(name: str, memory: int) -> dict[str, Any]:
    """Return the row of an architecture in the report. `memory` is the limit of this process in bytes."""
    architecture = load_architecture(f"open_clip:{name}")
    text = architecture.config["text_cfg"]
    found: dict[str, Any] = {
        "family": family(name),
        "image size": architecture.image_size,
        "context length": context_length(architecture),
        "tokenizer": text.get("hf_tokenizer_name", "CLIP"),
    }
    with mock.patch("transformers.AutoConfig.from_pretrained", _default_config):
        if "hf_model_name" in text:
            found["text configuration"] = f"defaults of {TRANSFORMERS_CONFIGS[text['hf_model_name']]}"
        found["parameters"] = count_parameters(architecture)
        if 4.4 * found["parameters"] + 2**30 > memory:  # four bytes for each parameter, and activations
            return found | {"result": "too large"}
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        return found | measure(name)


def in_process(name: str, memory: int) -> dict[str, Any] | None:
    """Return the row of an architecture, computed in a separate process. Return None if the process fails."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(row(name, memory)))
    process.start()
    sender.close()
    try:
        found: dict[str, Any] = receiver.recv()
    except EOFError:
        found = {}
    process.join()
    return found or None


def _default_config(repository: str) -> Any:
    import transformers

    return getattr(transformers, TRANSFORMERS_CONFIGS[repository])()


def tables() -> str:
    """Return a Markdown table of the families and one of all architectures, from the committed report."""
    found = json.loads(RESULTS.read_text())
    rows, names = found["architectures"], open_clip.list_models()
    families = []
    for each in FAMILIES:
        members = [name for name in names if family(name) == each]
        measured = [rows[name]["difference"] for name in members if "difference" in rows.get(name, {})]
        worst = f"{max(measured):.1e}" if measured else ""
        families.append([each, str(len(members)), str(len(measured)), worst])
    about = f"open_clip {found['open_clip']}, torch {found['torch']}, {found['machine']}, {found['date']}."
    return "\n\n".join(
        [
            about,
            _markdown(["family", "architectures", "measured", "largest difference"], families),
            _markdown(
                ["architecture", "parameters", "image size", "tokenizer", "difference"],
                [_line(name, rows.get(name, {})) for name in names],
            ),
        ]
    )


def _line(name: str, item: dict[str, Any]) -> list[str]:
    config = open_clip.get_model_config(name)
    tokenizer = config["text_cfg"].get("hf_tokenizer_name")
    parameters = f"{item['parameters'] / 1e6:,.0f} M" if item else ""
    outcome = f"{item['difference']:.1e}" if "difference" in item else item.get("result", "not measured")
    return [
        f"`{name}`",
        f"{parameters} (*)" if "text configuration" in item else parameters,
        str(config["vision_cfg"]["image_size"]),
        f"{tokenizer}, needs a network" if tokenizer else "CLIP",
        outcome,
    ]


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Read the command line and measure the architectures that the report lacks."""
    parser = report.parser_of(__doc__, threads=1)
    parser.add_argument("--memory", type=float, default=12, help="the limit of the memory in GiB")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = json.loads(options.out.read_text())["architectures"] if options.out and options.out.is_file() else {}
    names = open_clip.list_models()
    for name in sorted(names, key=size):
        if name in rows:
            continue
        if (found := in_process(name, int(options.memory * 2**30))) is None:
            continue
        rows[name] = found
        print(name, found, flush=True)
        versions = {"open_clip": open_clip.__version__, "limit": LIMIT, "memory limit": options.memory}
        ordered = {each: rows[each] for each in names if each in rows}
        report.write({**report.machine(), **versions, "architectures": ordered}, options.out)


if __name__ == "__main__":
    main()
