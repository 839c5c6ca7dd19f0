"""Models on the Hugging Face hub: load CLIP and SigLIP models, given as hf:ORG/NAME[@REVISION], with transformers."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import user_path
from robustbench_vlm.core.hub_access import hub_cache, with_hub_files
from robustbench_vlm.models.in_memory import InMemoryModel, model_of_library
from robustbench_vlm.models.open_clip import unlogged
from robustbench_vlm.models.peft_adapters import ADAPTER_FILES, read_adapter_config, with_adapter
from robustbench_vlm.models.reference import HuggingFaceModel, is_repository

T = TypeVar("T")

_NOT_FOUND = ("RepositoryNotFoundError", "RevisionNotFoundError")


def load_hub_model(reference: HuggingFaceModel) -> InMemoryModel:
    """Load a model of the hub with its processor. Files that are not in the cache are downloaded.

    Only safetensors weights are read, and code of the repository is never run. The preprocessing constants, the
    resolution and the logit scale come from the repository. The digest covers the weights, the structure and the tokens
    of fixed texts. The digest does not depend on the name of the revision. An adapter is merged into the weights, so
    the digest also covers the adapter.

    Raises:
        UserError: The package transformers is missing. The reference has an adapter, and the package peft is missing.
            The repository cannot be read. The model lacks an image encoder or a text encoder. The adapter does not fit
            the model.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"{reference} needs the package transformers, which is not installed: pip install 'robustbench_vlm[hf]'"
        ) from error

    if reference.adapter:
        expect_adapter(reference.adapter)

    def load(**options: Any) -> tuple[Any, Any]:
        _expect_whole_model(reference, options)
        # If peft is installed, transformers also looks for adapters, by default in its own cache and on the network.
        where = {key: value for key, value in options.items() if key != "revision"}
        model = transformers.AutoModel.from_pretrained(
            reference.repository,
            use_safetensors=True,
            dtype=torch.float32,
            trust_remote_code=False,
            adapter_kwargs=where,
            **options,
        )
        # The library transformers does not have type annotations.
        reader: Any = transformers.AutoProcessor
        return model, reader.from_pretrained(reference.repository, trust_remote_code=False, **options)

    try:
        with quiet_libraries():
            model, processor = from_cache_or_hub(load, reference.revision, str(reference))
            if reference.adapter:
                folder = find_adapter(reference.adapter)
                model = with_adapter(model, folder, str(reference), base=reference.repository)
    except UserError:
        raise
    # transformers and the client of the hub raise many types of errors.
    except Exception as error:
        raise UserError(f"cannot load {reference}: {_advice(error)}") from error
    model.eval().requires_grad_(False)
    # Nothing else uses this neural network, so it is not copied. A copy would double the memory of each worker process.
    made = model_of_library(model, processor, {}, _interpolation(processor), name="hub-model")
    return dataclasses.replace(made, name=str(reference), digest_prefix="")


def from_cache_or_hub(load: Callable[..., T], revision: str, what: str) -> T:
    """Call `load`, which reads files of the hub, and return its result. Files that are not in the cache are downloaded.

    `load` is called with keyword arguments for the client of the hub: `revision`, and `cache_dir` if VLMBENCH_CACHE is
    set. `with_hub_files` describes the errors.
    """
    options: dict[str, Any] = {"revision": revision or None}
    if folder := hub_cache():
        options["cache_dir"] = folder
    return with_hub_files(what, lambda: load(**options))


def expect_adapter(adapter: str) -> None:
    """Raise UserError if the name of an adapter is neither an existing folder nor ORG/NAME[@REVISION]."""
    if not user_path(adapter).is_dir() and not is_repository(adapter.partition("@")[0]):
        raise UserError(
            f"the adapter {adapter!r} is not a folder, and it is not the ORG/NAME of a repository on the hub: correct"
            " the path"
        )


def find_adapter(adapter: str) -> Path:
    """Return the folder with the files of a peft adapter: a local folder, or the cached files of a hub repository.

    If a local folder has the name `adapter`, this folder is returned. The library peft makes the same choice. If there
    is no such folder, `adapter` must have the form ORG/NAME[@REVISION] of a repository.
    Raises UserError if neither the folder nor the repository exists.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    expect_adapter(adapter)
    folder = user_path(adapter)
    if folder.is_dir():
        return folder
    repository, _, revision = adapter.partition("@")

    def load(**options: Any) -> Path:
        files = [Path(hf_hub_download(repository, file, **options)) for file in ADAPTER_FILES]
        return files[0].parent

    try:
        return from_cache_or_hub(load, revision, f"the adapter {adapter}")
    except EntryNotFoundError as error:
        raise UserError(
            f"the repository {adapter} must have the files {' and '.join(ADAPTER_FILES)}: {error}; other formats of"
            " adapters, such as adapter_model.bin, are not read"
        ) from error


def _expect_whole_model(reference: HuggingFaceModel, options: Mapping[str, Any]) -> None:
    """Raise UserError if a repository has an adapter and not a whole model.

    transformers would load the base model that the adapter names, from any repository or folder.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        found = hf_hub_download(reference.repository, ADAPTER_FILES[0], **options)
    except EntryNotFoundError:
        return
    base = read_adapter_config(Path(found).parent).get("base_model_name_or_path")
    raise UserError(
        f"{reference} is an adapter of peft, but a whole model is expected: write"
        f" hf:{base if isinstance(base, str) else 'BASE'}+{reference.repository}"
    )


def pixel_difference(model: InMemoryModel, processor: Any, side: int) -> float:
    """Return the largest difference between the pixels that the processor and the model compute from one image.

    The unit of the difference is the pixel range. The image has `side` x `side` pixels, and one half of it is smooth
    and the other half is noise. If neither the processor nor the model resizes the image, the difference is a rounding
    error. The difference is large if both resize the image with different filters.
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
    """Return the name of a processor's interpolation. Pillow's number for bilinear is 2 and for bicubic 3."""
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
