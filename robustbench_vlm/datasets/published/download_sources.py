"""The download sources of the published datasets, in the order in which they are tried.

The Hugging Face Hub is tried first if its tar files (shards) have the samples of the original files. A repository of
the Hub is tried first only if all of these facts are known:

* It has the same split with the same number of samples. The source of the numbers is DataComp's tasklist.yml
  (mlfoundations/datacomp 2d7bde7).
* Its class names are those of class_lists.json, in the same order (CLIP_benchmark 0322448, builder.py). For most
  repositories, the size of classnames.txt on the Hub was also compared.
* Its pixels come from the original files: the arrays without loss, the image files, or images that Pillow decoded
  (CLIP_benchmark 0d88674, webdataset_builder.py).

Otherwise, the original host is tried first. A download also checks the number of samples, the order of the classes and
the digests of the files, so a wrong repository is refused. The sizes of files on the Hub are the sizes that the pages
of the Hub showed, or estimates from these sizes.
"""

from collections.abc import Mapping

from robustbench_vlm.datasets.published.base import DownloadSource

_OXFORD = "https://www.robots.ox.ac.uk"
_CALTECH = "https://data.caltech.edu"
_TORONTO = "https://www.cs.toronto.edu"
_DECODED = "same samples, but TensorFlow decoded the JPEG files, so pixels may differ slightly"
_VTAB_PART = "has other samples, so it is used only if the original host fails"
_SECOND = "used if the hub fails"
_ONLY_HUB = "no host of the original files allows downloads by a program"


def _hub(name: str, download_bytes: int, reason: str, split: str = "") -> DownloadSource:
    return DownloadSource("hub", f"clip-benchmark/{name}", download_bytes, reason, split=split)


def _original(name: str, host: str, download_bytes: int, reason: str) -> DownloadSource:
    return DownloadSource("original", name, download_bytes, reason, host)


SOURCES: Mapping[str, tuple[DownloadSource, ...]] = {
    "caltech101": (
        _original("Caltech101", _CALTECH, 137_000_000, "all samples"),
        _hub("wds_vtab-caltech101", 439_000_000, _VTAB_PART, split="the test part of VTAB's own split"),
    ),
    "caltech256": (_original("Caltech256", _CALTECH, 1_183_000_000, "the hub does not have this dataset"),),
    "cifar10": (
        _hub("wds_vtab-cifar10", 56_000_000, "same samples and pixels; the original host is slow"),
        _original("CIFAR10", _TORONTO, 170_498_071, _SECOND),
    ),
    "cifar100": (
        _hub("wds_vtab-cifar100", 56_000_000, "same samples and pixels; the original host is slow"),
        _original("CIFAR100", _TORONTO, 169_001_437, _SECOND),
    ),
    "dtd": (
        _original("DTD", _OXFORD, 625_239_812, "the original files"),
        _hub("wds_vtab-dtd", 463_000_000, _DECODED),
    ),
    "eurosat": (
        _original("EuroSAT", "https://huggingface.co", 94_280_567, "all samples"),
        _hub("wds_vtab-eurosat", 0, _VTAB_PART, split="the test part of VTAB's own split"),
    ),
    "fgvc-aircraft": (
        _hub("wds_fgvc_aircraft", 2_450_000_000, "same samples, decoded by Pillow"),
        _original("FGVCAircraft", _OXFORD, 2_753_000_000, _SECOND),
    ),
    "flowers102": (
        _original("Flowers102", _OXFORD, 344_878_000, "the original files"),
        _hub("wds_vtab-flowers", 0, _DECODED),
    ),
    "food101": (
        _hub("wds_food101", 1_373_000_000, "same samples; only the test split is downloaded"),
        _original("Food101", "https://data.vision.ee.ethz.ch", 4_996_278_331, _SECOND),
    ),
    "imagenet": (_hub("wds_imagenet1k", 6_900_000_000, "ImageNet's terms must be accepted"),),
    "oxford-pets": (
        _original("OxfordIIITPet", _OXFORD, 811_000_000, "the original files"),
        _hub("wds_vtab-pets", 889_000_000, _DECODED),
    ),
    "pcam": (_hub("wds_vtab-pcam", 660_000_000, f"same samples and pixels; {_ONLY_HUB}"),),
    "stanford-cars": (_hub("wds_cars", 1_008_000_000, f"same samples; {_ONLY_HUB}"),),
    "stl10": (
        _hub("wds_stl10", 142_000_000, "same samples and pixels; only the test split is downloaded"),
        _original("STL10", "https://ai.stanford.edu", 2_640_397_119, _SECOND),
    ),
    "sun397": (
        _hub("wds_sun397", 40_000_000_000, "same samples; the address of the original files returns 404 since 2025"),
        _original("SUN397", "https://vision.princeton.edu", 39_077_296_924, _SECOND),
    ),
    "country211": (
        _original("Country211", "https://openaipublic.azureedge.net", 11_300_000_000, "the original files"),
        _hub("wds_country211", 0, "the order of its classes was not compared"),
    ),
    "imagenet-r": (_hub("wds_imagenet-r", 2_191_079_936, _ONLY_HUB),),
    "imagenet-sketch": (_hub("wds_imagenet_sketch", 7_593_573_012, _ONLY_HUB),),
}
"""The download sources of each dataset that this package can download. Other datasets can only be downloaded by hand.
"""
