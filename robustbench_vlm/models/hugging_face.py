"""Models on the Hugging Face hub: load CLIP and SigLIP models with transformers by hf:ORG/NAME[@REVISION]."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.hub_access import expect_hub, hub_cache
from robustbench_vlm.models.in_memory import InMemoryModel, zero_shot
from robustbench_vlm.models.open_clip import unlogged
from robustbench_vlm.models.reference import HuggingFaceModel

_NOT_FOUND = ("RepositoryNotFoundError", "RevisionNotFoundError")


def load_hub_model(reference: HuggingFaceModel) -> InMemoryModel:
    """Load a model of the hub with its processor. Download the files that are not in the cache.

    Only safetensors weights are read, and code of the repository is never run. The preprocessing constants, the
    resolution and the logit scale come from the repository. The digest covers the weights, the structure and the
    tokens of fixed texts. It does not depend on the name of the revision.

    Raises:
        UserError: The package transformers is missing. Or the repository cannot be read, or its model does not have
            both an image encoder and a text encoder.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"{reference} needs the package transformers, which is not installed: pip install 'robustbench_vlm[hf]'"
        ) from error
    options: dict[str, Any] = {"revision": reference.revision or None, "trust_remote_code": False}
    if folder := hub_cache():
        options["cache_dir"] = folder

    def load(**more: Any) -> tuple[Any, Any]:
        model = transformers.AutoModel.from_pretrained(
            reference.repository, use_safetensors=True, dtype=torch.float32, **options, **more
        )
        # The library transformers does not have type annotations.
        reader: Any = transformers.AutoProcessor
        return model, reader.from_pretrained(reference.repository, **options, **more)

    try:
        with quiet_libraries():
            # The cache is tried first: it needs no network, and all workers of a run read the same files.
            try:
                found = load(local_files_only=True)
            except OSError:
                found = None
            if found is None:
                expect_hub(str(reference))
                found = load()
    except UserError:
        raise
    # transformers and the client of the hub raise many types of errors.
    except Exception as error:
        raise UserError(f"cannot load {reference}: {_advice(error)}") from error
    model, processor = found
    made = zero_shot(model, processor, interpolation=_interpolation(processor), name="hub-model")
    return dataclasses.replace(made, name=str(reference), digest_prefix="")


def pixel_difference(model: InMemoryModel, processor: Any, side: int) -> float:
    """Return the largest difference between the pixels of the processor and the pixels of the model.

    The unit is the pixel range. Both preprocess one image of `side` x `side` pixels with a smooth and a noisy half. If
    neither resizes the image, the difference is a rounding error. It is large if they resize with different filters.
    """
    from PIL import Image

    ramp = torch.linspace(0, 255, side * side).view(1, side, side).expand(3, -1, -1).round()
    noise = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0)).mul(255).round()
    pixels = torch.where(torch.arange(side).view(1, 1, side) < side // 2, ramp, noise).to(torch.uint8)
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    images = getattr(processor, "image_processor", processor)
    theirs: Tensor = images(images=image, return_tensors="pt")["pixel_values"][0]
    ours = model.encoder.pixels(pixels[None] / 255)[0]
    return float(((theirs - ours) * model.encoder.std[0]).abs().max())


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the logs and progress bars of the hub's client and of transformers. Errors are still raised."""
    from transformers.utils import logging as library

    # The library transformers does not have type annotations.
    bars: Any = library
    bars.disable_progress_bar()
    try:
        with unlogged():
            yield
    finally:
        bars.enable_progress_bar()


def _interpolation(processor: Any) -> str:
    """Return the interpolation that a processor resizes with. Pillow's number for bilinear is 2, for bicubic 3."""
    images = getattr(processor, "image_processor", processor)
    return "bilinear" if int(getattr(images, "resample", None) or 3) == 2 else "bicubic"


def _advice(error: BaseException) -> str:
    """Return the reason for a failure and the next step for the user."""
    names, cause = set(), error
    while cause is not None:
        names |= {type(cause).__name__}
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "GatedRepoError" in names or "gated" in text.lower():
        return (
            f"{text}; the repository is gated: ask for access on its page on huggingface.co, then log in with"
            " `hf auth login` or set HF_TOKEN"
        )
    if names & set(_NOT_FOUND) or "is not a valid model identifier" in str(error):
        return f"{text}; check ORG/NAME and the revision, and set HF_TOKEN if the repository is private"
    if names & {"OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectError", "ConnectionError"}:
        return f"{text}; check the network, or fill the cache elsewhere with `hf download` and set HF_HUB_CACHE"
    return f"{text}; the repository must hold a dual encoder of transformers with safetensors weights and a processor"
