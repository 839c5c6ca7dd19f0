"""Datasets that other papers of the field report and the suite's mean leaves out."""

from robustbench_vlm.datasets.published.original import Original

_HERE = "robustbench_vlm.datasets.published"

EXTRA = (
    Original(
        "tiny-imagenet",
        "TinyImageNet",
        f"{_HERE}.class_folders:tiny_imagenet",
        folder="tiny-imagenet-200",
        split="val",
        samples=10000,
        download_bytes=248_000_000,
        by_hand="fetch http://cs231n.stanford.edu/tiny-imagenet-200.zip and unpack it as tiny-imagenet-200",
        licence="ImageNet's terms of access",
        origin="http://cs231n.stanford.edu, from https://image-net.org",
    ),
    Original(
        "country211",
        "Country211",
        f"{_HERE}.class_folders:country211",
        folder="country211",
        split="test",
        samples=21100,
        download_bytes=11_300_000_000,
        torchvision="Country211",
        hub="clip-benchmark/wds_country211",
        licence="those of the images in YFCC100M (Creative Commons)",
        origin="https://github.com/openai/CLIP/blob/main/data/country211.md",
    ),
    Original(
        "imagenet-r",
        "ImageNet-R",
        f"{_HERE}.class_folders:imagenet_r",
        folder="imagenet-r",
        split="test",
        samples=30000,
        download_bytes=2_191_079_936,
        hub="clip-benchmark/wds_imagenet-r",
        by_hand="fetch https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar and unpack it as imagenet-r",
        licence="MIT for the selection",
        origin="https://github.com/hendrycks/imagenet-r",
    ),
    Original(
        "imagenet-sketch",
        "ImageNet-Sketch",
        f"{_HERE}.class_folders:imagenet_sketch",
        folder="imagenet-sketch",
        split="test",
        samples=50889,
        download_bytes=7_593_573_012,
        hub="clip-benchmark/wds_imagenet_sketch",
        by_hand=(
            "fetch ImageNet-Sketch.zip by the link of https://github.com/HaohanWang/ImageNet-Sketch and unpack "
            "it in imagenet-sketch"
        ),
        licence="MIT for the selection",
        origin="https://github.com/HaohanWang/ImageNet-Sketch",
    ),
    Original(
        "hateful-memes",
        "HatefulMemes",
        f"{_HERE}.split_lists:hateful_memes",
        folder="hateful_memes",
        split="dev_seen",
        samples=500,
        by_hand=(
            "agree to the licence at https://hatefulmemeschallenge.com, fetch the dataset, and unpack it as "
            "hateful_memes with dev_seen.jsonl and img in it"
        ),
        licence="Meta's licence of the challenge: for research",
        origin="https://hatefulmemeschallenge.com",
    ),
)
