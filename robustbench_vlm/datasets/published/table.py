"""The table of published datasets: the split, size, reader, download and licence of each.

To add a dataset, add a row to this table, its downloads to `download_sources.SOURCES`, its class names to
class_lists.json, its prompt template to `prompts.trusted` and its name to `datasets.DATASETS`.
"""

from collections.abc import Mapping

from robustbench_vlm.datasets.published.base import PublishedDataset
from robustbench_vlm.datasets.published.download_sources import SOURCES

_HERE = "robustbench_vlm.datasets.published"

SUITE = (
    PublishedDataset(
        "caltech101",
        "Caltech101",
        f"{_HERE}.class_folders:caltech101",
        folder="caltech101",
        split="all",
        samples=8677,
        sources=SOURCES["caltech101"],
        licence="CC BY 4.0",
        origin="https://data.caltech.edu/records/mzrjq-6wc02",
    ),
    PublishedDataset(
        "caltech256",
        "Caltech256",
        f"{_HERE}.class_folders:caltech256",
        folder="caltech256",
        split="all",
        samples=30607,
        sources=SOURCES["caltech256"],
        licence="CC BY 4.0",
        origin="https://data.caltech.edu/records/nyy15-4j048",
    ),
    PublishedDataset(
        "cifar10",
        "CIFAR10",
        f"{_HERE}.array_files:cifar10",
        folder="cifar-10-batches-py",
        split="test",
        samples=10000,
        native=True,
        sources=SOURCES["cifar10"],
        licence="not stated",
        origin="https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    PublishedDataset(
        "cifar100",
        "CIFAR100",
        f"{_HERE}.array_files:cifar100",
        folder="cifar-100-python",
        split="test",
        samples=10000,
        native=True,
        sources=SOURCES["cifar100"],
        licence="not stated",
        origin="https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    PublishedDataset(
        "dtd",
        "DTD",
        f"{_HERE}.split_lists:dtd",
        folder="dtd",
        split="test, partition 1",
        samples=1880,
        sources=SOURCES["dtd"],
        licence="for research",
        origin="https://www.robots.ox.ac.uk/~vgg/data/dtd",
    ),
    PublishedDataset(
        "eurosat",
        "EuroSAT",
        f"{_HERE}.class_folders:eurosat",
        folder="eurosat",
        split="all",
        samples=27000,
        sources=SOURCES["eurosat"],
        licence="MIT",
        origin="https://github.com/phelber/eurosat",
    ),
    PublishedDataset(
        "fgvc-aircraft",
        "FGVCAircraft",
        f"{_HERE}.split_lists:fgvc_aircraft",
        folder="fgvc-aircraft-2013b",
        split="test, by variant",
        samples=3333,
        sources=SOURCES["fgvc-aircraft"],
        licence="for research that is not commercial",
        origin="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft",
    ),
    PublishedDataset(
        "flowers102",
        "Flowers102",
        f"{_HERE}.split_lists:flowers102",
        folder="flowers-102",
        split="test",
        samples=6149,
        sources=SOURCES["flowers102"],
        licence="not stated",
        origin="https://www.robots.ox.ac.uk/~vgg/data/flowers/102",
    ),
    PublishedDataset(
        "food101",
        "Food101",
        f"{_HERE}.split_lists:food101",
        folder="food-101",
        split="test",
        samples=25250,
        sources=SOURCES["food101"],
        licence="for research; the images are those of foodspotting.com",
        origin="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101",
    ),
    PublishedDataset(
        "imagenet",
        "ImageNet",
        f"{_HERE}.class_folders:imagenet",
        folder="imagenet",
        split="val",
        samples=50000,
        sources=SOURCES["imagenet"],
        by_hand_bytes=6_747_000_000,
        licensed=True,
        by_hand=(
            "ask for access at https://image-net.org/download-images, fetch ILSVRC2012_img_val.tar and "
            "ILSVRC2012_devkit_t12.tar.gz, and unpack them as imagenet/val and imagenet/ILSVRC2012_devkit_t12"
        ),
        licence="ImageNet's terms of access: for research that is not commercial",
        origin="https://image-net.org",
    ),
    PublishedDataset(
        "oxford-pets",
        "OxfordIIITPet",
        f"{_HERE}.split_lists:oxford_pets",
        folder="oxford-iiit-pet",
        split="test",
        samples=3669,
        sources=SOURCES["oxford-pets"],
        licence="CC BY-SA 4.0",
        origin="https://www.robots.ox.ac.uk/~vgg/data/pets",
    ),
    PublishedDataset(
        "pcam",
        "PCAM",
        f"{_HERE}.array_files:pcam",
        folder="pcam",
        split="test",
        samples=32768,
        sources=SOURCES["pcam"],
        by_hand=(
            "fetch camelyonpatch_level_2_split_test_x.h5.gz and ..._test_y.h5.gz from "
            "https://zenodo.org/records/2546921 and unpack them (gunzip) in pcam"
        ),
        licence="CC0",
        origin="https://github.com/basveeling/pcam",
    ),
    PublishedDataset(
        "stanford-cars",
        "StanfordCars",
        f"{_HERE}.split_lists:stanford_cars",
        folder="stanford_cars",
        split="test",
        samples=8041,
        sources=SOURCES["stanford-cars"],
        by_hand=(
            "its page is gone: from a copy take cars_test, devkit and cars_test_annos_withlabels.mat and put "
            "them in stanford_cars"
        ),
        licence="for research that is not commercial",
        origin="Krause et al. 2013, https://ai.stanford.edu/~jkrause/cars/car_dataset.html (gone)",
    ),
    PublishedDataset(
        "stl10",
        "STL10",
        f"{_HERE}.array_files:stl10",
        folder="stl10_binary",
        split="test",
        samples=8000,
        native=True,
        sources=SOURCES["stl10"],
        licence="not stated; the images are ImageNet's",
        origin="https://cs.stanford.edu/~acoates/stl10",
    ),
    PublishedDataset(
        "sun397",
        "SUN397",
        f"{_HERE}.split_lists:sun397",
        folder="SUN397",
        split="all",
        samples=108754,
        sources=SOURCES["sun397"],
        by_hand=(
            "unpack a copy of SUN397.tar.gz as the folder SUN397 (the original page and the address of this file no "
            "longer exist)"
        ),
        licence="not stated",
        origin="Xiao et al. 2010, https://vision.princeton.edu/projects/2010/SUN (gone)",
    ),
)
"""The fifteen datasets of the AGFT paper. The paper uses torchvision's splits of these datasets."""

EXTRA = (
    PublishedDataset(
        "tiny-imagenet",
        "TinyImageNet",
        f"{_HERE}.class_folders:tiny_imagenet",
        folder="tiny-imagenet-200",
        split="val",
        samples=10000,
        by_hand_bytes=248_000_000,
        by_hand="fetch http://cs231n.stanford.edu/tiny-imagenet-200.zip and unpack it as tiny-imagenet-200",
        licence="ImageNet's terms of access",
        origin="http://cs231n.stanford.edu, from https://image-net.org",
    ),
    PublishedDataset(
        "country211",
        "Country211",
        f"{_HERE}.class_folders:country211",
        folder="country211",
        split="test",
        samples=21100,
        sources=SOURCES["country211"],
        licence="those of the images in YFCC100M (Creative Commons)",
        origin="https://github.com/openai/CLIP/blob/main/data/country211.md",
    ),
    PublishedDataset(
        "imagenet-r",
        "ImageNet-R",
        f"{_HERE}.class_folders:imagenet_r",
        folder="imagenet-r",
        split="test",
        samples=30000,
        sources=SOURCES["imagenet-r"],
        by_hand="fetch https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar and unpack it as imagenet-r",
        licence="MIT for the selection",
        origin="https://github.com/hendrycks/imagenet-r",
    ),
    PublishedDataset(
        "imagenet-sketch",
        "ImageNet-Sketch",
        f"{_HERE}.class_folders:imagenet_sketch",
        folder="imagenet-sketch",
        split="test",
        samples=50889,
        sources=SOURCES["imagenet-sketch"],
        by_hand=(
            "fetch ImageNet-Sketch.zip by the link of https://github.com/HaohanWang/ImageNet-Sketch and unpack "
            "it in imagenet-sketch"
        ),
        licence="MIT for the selection",
        origin="https://github.com/HaohanWang/ImageNet-Sketch",
    ),
    PublishedDataset(
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
"""Datasets that are not in the AGFT paper, and on which other papers report results."""

PUBLISHED: Mapping[str, PublishedDataset] = {dataset.name: dataset for dataset in (*SUITE, *EXTRA)}
