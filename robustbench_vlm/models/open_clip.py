"""CLIP architectures: build them with open_clip, and load their pretrained weights from open_clip."""

import contextlib
import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.fingerprint import fingerprint
from robustbench_vlm.core.hub_access import with_hub_files
from robustbench_vlm.core.registry import unknown
from robustbench_vlm.models import ARCHITECTURES, CONTEXT_LENGTH
from robustbench_vlm.models.card import check_normalisation
from robustbench_vlm.models.reference import OPEN_CLIP
from robustbench_vlm.models.weights import remember
from robustbench_vlm.models.weights_cache import digest_record, in_hub_cache

_PROBES = ("a photo of a dog.", "X-RAY no. 7, 25 %", "ein Café in Zürich", "\u4e00\u5f20\u7167\u7247", "")
"""Fixed texts. The digest of a tokenizer covers their tokens."""


@dataclass(frozen=True)
class Architecture:
    """A CLIP architecture and the normalisation of its pixels."""

    config: Mapping[str, Any]
    """The arguments of `open_clip.CLIP`."""
    mean: tuple[float, float, float]
    """The mean of each colour channel, for pixels in [0, 1]."""
    std: tuple[float, float, float]
    """The standard deviation of each colour channel, for pixels in [0, 1]."""
    open_clip_name: str = ""
    """The name of the architecture in open_clip, from which open_clip builds the network and the tokenizer. "" if the
    class `open_clip.CLIP` and CLIP's tokenizer are used.
    """

    def __post_init__(self) -> None:
        check_normalisation(self.mean, self.std)

    @property
    def image_size(self) -> int:
        """Height and width of the image encoder's input, in pixels."""
        return int(self.config["vision_cfg"]["image_size"])

    def build(self) -> nn.Module:
        """Return a network of this architecture with random weights.

        Raises UserError if open_clip must download a part of the configuration and the download fails.
        """
        import open_clip

        # open_clip does not use its class `CLIP` for these configurations, so open_clip's factory has
        # to build the network.
        if self.config.get("custom_text") or "hf_model_name" in self.config["text_cfg"]:
            # A caller that needs only the shapes of the tensors sets the default device of torch to "meta".
            device = torch.get_default_device()
            built: nn.Module = _fetched(
                f"the configuration of {OPEN_CLIP}{self.open_clip_name}",
                lambda: open_clip.create_model(self.open_clip_name, pretrained_text=False, device=device),
            )
            return built
        arguments = {key: dict(value) if isinstance(value, Mapping) else value for key, value in self.config.items()}
        network: nn.Module = open_clip.CLIP(**arguments)
        return network


def load_architecture(name: str) -> Architecture:
    """Return the architecture with a registered name, or the architecture of open_clip with a name "open_clip:NAME".

    For "open_clip:NAME", mean and std come from open_clip's pretrained weights. Raises UserError for an unknown name.
    """
    if not name.startswith(OPEN_CLIP):
        architecture: Architecture = ARCHITECTURES.load(name)
        return architecture
    import open_clip

    short = name.removeprefix(OPEN_CLIP)
    # open_clip also reads configurations from folders and from the hub ("local-dir:", "hf-hub:"). Such a name may come
    # from a card of other people, and its configuration is not fixed, so only the names of open_clip are accepted.
    if short not in open_clip.list_models():
        raise UserError(unknown("open_clip architecture", short, open_clip.list_models()))
    config = open_clip.get_model_config(short)
    return Architecture(config, *_pixel_constants(short), short)


def load_tokenizer(architecture: Architecture) -> Callable[[list[str]], Tensor]:
    """Return an architecture's tokenizer, a function from N texts to tokens, int64 [N, L] with context length L.

    Raises UserError if open_clip must download the tokenizer and the download fails.
    """
    return _load_tokenizer(architecture.open_clip_name, context_length(architecture))


def has_own_tokenizer(architecture: Architecture) -> bool:
    """Return whether the architecture has a tokenizer that is not CLIP's tokenizer."""
    return "hf_tokenizer_name" in architecture.config["text_cfg"]


def context_length(architecture: Architecture) -> int:
    """Return the largest number of tokens that the text encoder reads, including the start and end tokens."""
    return int(architecture.config["text_cfg"].get("context_length", CONTEXT_LENGTH))


@functools.cache
def _load_tokenizer(name: str, length: int) -> Callable[[list[str]], Tensor]:
    import open_clip

    if not name:
        plain: Callable[[list[str]], Tensor] = open_clip.SimpleTokenizer(context_length=length)
        return plain
    what = f"the tokenizer of {OPEN_CLIP}{name}"
    fetched: Callable[[list[str]], Tensor] = _fetched(what, lambda: open_clip.get_tokenizer(name))
    return fetched


def _fetched(what: str, load: Callable[[], Any]) -> Any:
    """Call `load`, which uses open_clip to download files from the Hugging Face hub. Return its result.

    Raises UserError if `load` fails. `what` is the name of the files for the error message.
    """
    try:
        with unlogged():
            return with_hub_files(what, load)
    except UserError:
        raise
    # The client of the hub raises many types of network and cache errors.
    except Exception as error:
        raise UserError(
            f"cannot download {what}: {error}; check the network, or set VLMBENCH_CACHE to a folder that has the files"
        ) from error


def _pixel_constants(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return the mean and std with which an architecture of open_clip was pretrained.

    If the weights of different tags have a different mean and std, return the mean and std of CLIP.
    """
    import open_clip

    usual = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    settings = [open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
    found = {
        tuple(tuple(each.get(key) or other) for key, other in zip(("mean", "std"), usual, strict=True))
        for each in settings
    }
    mean, std = found.pop() if len(found) == 1 else usual
    return tuple(mean), tuple(std)


def can_load_pretrained(architecture: str, tag: str) -> bool:
    """Return whether pretrained weights of an architecture "open_clip:NAME" are in the cache of the Hugging Face hub.

    If the tag is unknown or its weights are not on the hub, the cache of the hub gives no answer. The result is then
    True.
    """
    import open_clip

    settings = open_clip.get_pretrained_cfg(architecture.removeprefix(OPEN_CLIP), tag)
    repository = settings.get("hf_hub", "").rpartition("/")[0]
    return not repository or in_hub_cache(repository)


def load_pretrained(architecture: str, tag: str) -> tuple[nn.Module, Architecture, str]:
    """Return the network, architecture and digest of an architecture "open_clip:NAME" with pretrained weights.

    open_clip downloads the weights if they are not in its cache. The returned architecture has the mean and std with
    which the weights were trained. The digest is a sha256 over architecture, mean, std and weights. Raises UserError if
    the tag is unknown, the download fails, or the weights were trained with a different activation function.
    """
    import open_clip

    name, built = architecture.removeprefix(OPEN_CLIP), pretrained_architecture(architecture, tag)
    network = _fetched(f"{architecture}/{tag}", lambda: open_clip.create_model(name, pretrained=tag))
    state = {key: fingerprint(_digest(value)) for key, value in network.state_dict().items()}
    digest = fingerprint([architecture, built.mean, built.std, state, *tokenizer_digest(built)])
    remember(digest_record(architecture, tag), digest, f"the weights {architecture}/{tag}")
    return network, built, digest


def pretrained_architecture(architecture: str, tag: str) -> Architecture:
    """Return an architecture "open_clip:NAME" with the mean and std of pretrained weights. Nothing is downloaded.

    Raises UserError if the architecture or the tag is unknown, or if the weights were trained with a different
    activation function.
    """
    import open_clip

    built, name = load_architecture(architecture), architecture.removeprefix(OPEN_CLIP)
    if tag not in open_clip.list_pretrained_tags_by_model(name):
        raise UserError(unknown(f"pretrained tag of {name}", tag, open_clip.list_pretrained_tags_by_model(name)))
    settings = open_clip.get_pretrained_cfg(name, tag)
    _check_activation(built, name, tag, is_quick=bool(settings.get("quick_gelu")))
    mean, std = (tuple(settings.get(key) or getattr(built, key)) for key in ("mean", "std"))
    return dataclasses.replace(built, mean=mean, std=std)


def tokenizer_digest(architecture: Architecture) -> tuple[str, ...]:
    """Return a digest of the tokens of fixed texts, in a tuple with one item. Return () for CLIP's tokenizer.

    A downloaded tokenizer is a part of the model. With other tokens, the same weights would be a different model.
    """
    return (_digest(load_tokenizer(architecture)(list(_PROBES))),) if has_own_tokenizer(architecture) else ()


def constants_digest(architecture: Architecture) -> tuple[str, ...]:
    """Return a digest of the configuration, mean and std of an architecture of open_clip, in a tuple with one item.

    Another version of open_clip may have other values under the same name. Return () for other architectures, whose
    name is their identity.
    """
    if not architecture.open_clip_name:
        return ()
    return (fingerprint([architecture.config, architecture.mean, architecture.std]),)


def _check_activation(built: Architecture, name: str, tag: str, *, is_quick: bool) -> None:
    """Raise UserError if the architecture and the weights need different activation functions."""
    if is_quick == bool(built.config.get("quick_gelu")):
        return
    other = f"{name}-quickgelu" if is_quick else name.removesuffix("-quickgelu")
    raise UserError(
        f"the weights {tag} of {name} were trained with {'QuickGELU' if is_quick else 'GELU'}, but"
        f" {OPEN_CLIP}{name} uses {'GELU' if is_quick else 'QuickGELU'}: use {OPEN_CLIP}{other}/{tag}"
    )


@contextlib.contextmanager
def unlogged() -> Iterator[None]:
    """Silence the logs of open_clip and of the Hugging Face client. Errors are still raised."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
