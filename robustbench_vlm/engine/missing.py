"""Datasets and weights that a request needs and that are not on this machine.

This module does not import torch, so `vlmbench run` and `vlmbench plan` answer at once if files are missing.
"""

from collections.abc import Sequence

from robustbench_vlm.attacks import check_attack_name
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.hosts import Hosts, host_of, unreachable_text
from robustbench_vlm.core.hub_access import endpoint
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.datasets.base import Dataset
from robustbench_vlm.datasets.listing import folders
from robustbench_vlm.datasets.published import PUBLISHED
from robustbench_vlm.datasets.published.local_copy import data_root, find_images, has_folder, is_available
from robustbench_vlm.engine.radii import norm_of
from robustbench_vlm.engine.request import Request
from robustbench_vlm.models.reference import OPEN_CLIP
from robustbench_vlm.models.weights_cache import MissingWeights, hub_cache_has_models, missing_weights
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.tracks import TRACKS


def dataset_names(request: Request) -> list[str]:
    """Return the requested dataset names without repetitions. The list is empty if a folder of images is given.

    Raises UserError if both datasets and a folder of images are given, or if neither is given and the track has no
    datasets. Also raises UserError if a prompt is given without a folder of images.
    """
    track = TRACKS.load(request.track_name)
    protocol = PROTOCOLS.load(request.protocol_name)
    if request.images is not None:
        if request.datasets:
            raise UserError(
                "--images and --dataset were both given, but only one can be used: give --images or --dataset"
            )
        return []
    if request.prompt:
        raise UserError(
            f"--prompt {request.prompt!r} is given without --images, but datasets have the prompts of the protocol:"
            " leave --prompt out, or give your own images with --images"
        )
    if names := request.datasets or protocol.datasets or track.datasets:
        return list(dict.fromkeys(names))
    raise UserError(
        f"the track {track.name!r} does not define datasets: give --images DIR, a folder with one sub-folder per class,"
        " or --dataset NAME; `vlmbench list datasets` shows all names"
    )


def check_before_import(request: Request) -> None:
    """Check the names, the radii and the folders of a request, and find missing datasets and weights.

    The check only looks for the folders of the datasets and does not read the files in them. It takes less than a
    second if all files are present. Raises UserError for an unknown attack, dataset or norm, for a wrong eps, and for a
    folder of images that does not exist. `check_files` describes the errors for missing datasets and weights.
    """
    protocol = PROTOCOLS.load(request.protocol_name)
    norm_of(request, TRACKS.load(request.track_name), protocol)
    for name in request.attacks:
        check_attack_name(protocol.attack_name(name))
    if request.images is not None:
        folders(request.images)
    root = data_root(request.data)
    loaded = [DATASETS.load(name) for name in dataset_names(request)]
    if not all(has_folder(PUBLISHED[dataset.published], root) for dataset in loaded if dataset.published):
        check_files(request)
    check_hosts(request.track_name, _missing_weights(request))


def _missing_weights(request: Request) -> list[MissingWeights]:
    return [each for model in dict.fromkeys(request.models) for each in missing_weights(model, request.track_name)]


def check_files(request: Request) -> None:
    """Raise UserError if a dataset is missing, or if missing weights cannot be downloaded.

    The message lists all missing datasets and weights, with one command for the datasets and one for the weights. If
    only weights are missing, the function connects once to each of their hosts, to check that it can be reached.
    """
    find_images.cache_clear()
    datasets: list[Dataset] = [DATASETS.load(name) for name in dataset_names(request)]
    absent = [dataset.name for dataset in datasets if not is_available(dataset, request.data)]
    weights = _missing_weights(request)
    if absent:
        texts = [_data_text(request, absent, len(datasets))]
        raise UserError("\n".join(texts + [_weights_text(request.track_name, weights)] * bool(weights)))
    check_hosts(request.track_name, weights)


def check_hosts(track: str, weights: Sequence[MissingWeights], *, is_download: bool = False) -> None:
    """Raise UserError if the host of missing weights cannot be reached. The message lists all missing weights.

    If `is_download` is true, the command that downloads them was given, so the message does not recommend it. Also
    raises UserError if a user gave an unknown architecture or tag of open_clip.
    """
    down = Hosts().unreachable(map(_address, weights))
    # The cache look-up for open_clip's weights is the only one that imports torch, so it comes last.
    ordered = sorted(weights, key=lambda each: each.pretrained)
    if down and any(host_of(_address(each)) in down and not _is_in_hub_cache(each) for each in ordered):
        for each in weights:
            if each.pretrained and each.model.startswith(OPEN_CLIP):
                _check_names(each)
        text = _weights_text(track, weights, is_download=is_download)
        raise UserError(f"{text}\nThis needs a network: {unreachable_text(down)}")


def _check_names(weights: MissingWeights) -> None:
    """Raise UserError if open_clip does not know the architecture or the tag of weights."""
    from robustbench_vlm.models.open_clip import pretrained_architecture

    pretrained_architecture(*weights.file.rsplit("/", 1))


def _address(weights: MissingWeights) -> str:
    """Return an address on the host of a weights file.

    For weights that need a manual download, return the address of their web page.
    """
    return endpoint() if weights.pretrained or weights.url.startswith("hf:") else weights.url or weights.page


def _is_in_hub_cache(weights: MissingWeights) -> bool:
    if not weights.pretrained or not hub_cache_has_models():
        return False
    from robustbench_vlm.models.open_clip import can_load_pretrained

    return can_load_pretrained(*weights.file.rsplit("/", 1))


def _data_text(request: Request, absent: Sequence[str], total: int) -> str:
    by_hand = [name for name in absent if not PUBLISHED[name].fetchable]
    command = " ".join(name for name in absent if name not in by_hand)
    ways = [f"Run `vlmbench data prepare {command}`"] if command else []
    if by_hand:
        ways.append(f"Fetch by hand: {', '.join(by_hand)}")
    return (
        f"{len(absent)} of {total} datasets are missing in {data_root(request.data)}: {', '.join(absent)}."
        f" {'. '.join(ways)}. `vlmbench data list` shows the source of each. Or give another folder with --data, or"
        " other datasets with --dataset"
    )


def _weights_text(track: str, weights: Sequence[MissingWeights], *, is_download: bool = False) -> str:
    models = dict.fromkeys(each.model for each in weights)
    sources = [f"{each.file} from {each.url or each.page or 'the Hugging Face hub'}" for each in weights]
    files = "; ".join(dict.fromkeys(sources))
    return (
        f"The weights of {len(models)} model{'s' if len(models) > 1 else ''} are not in the cache:"
        f" {', '.join(models)} ({files})."
    ) + ("" if is_download else f" Run `vlmbench data weights --track {track} {' '.join(models)}`")
