"""Archives of made-up datasets, with the names and layouts of the archives that torchvision downloads."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import Server
from torchvision import datasets as torchvision_datasets

from robustbench_vlm.core.download import download
from robustbench_vlm.datasets.published import torchvision as fetch_from_torchvision


def packed(folder: Path, *names: str, mode: str = "w:gz") -> bytes:
    """Return a tar file with the named files of a folder."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        for name in names:
            archive.add(folder / name, name)
    return file.getvalue()


def zipped(**files: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def tree(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def caltech101(folder: Path) -> dict[str, bytes]:
    pictures = packed(folder, "101_ObjectCategories")
    inside = {"caltech-101/101_ObjectCategories.tar.gz": pictures, "__MACOSX/caltech-101/._show_annotation.m": b"x"}
    return {"caltech-101.zip": zipped(**inside)}


def oxford_pets(folder: Path) -> dict[str, bytes]:
    (folder / "annotations" / "trainval.txt").write_text("Abyssinian_100 1 1 1\n")
    return {"images.tar.gz": packed(folder, "images"), "annotations.tar.gz": packed(folder, "annotations")}


def flowers102(folder: Path) -> dict[str, bytes]:
    lists = {name: (folder / name).read_bytes() for name in ("imagelabels.mat", "setid.mat")}
    return {"102flowers.tgz": packed(folder, "jpg")} | lists


ARCHIVES: dict[str, Callable[[Path], dict[str, bytes]]] = {
    "caltech101": caltech101,
    "caltech256": lambda folder: {"256_ObjectCategories.tar": packed(folder, "256_ObjectCategories", mode="w")},
    "cifar10": lambda folder: {"cifar-10-python.tar.gz": packed(folder.parent, folder.name)},
    "cifar100": lambda folder: {"cifar-100-python.tar.gz": packed(folder.parent, folder.name)},
    "dtd": lambda folder: {"dtd-r1.0.1.tar.gz": packed(folder, "dtd")},
    "eurosat": lambda folder: {"EuroSAT.zip": zipped(**tree(folder))},
    "fgvc-aircraft": lambda folder: {"fgvc-aircraft-2013b.tar.gz": packed(folder.parent, folder.name)},
    "flowers102": flowers102,
    "food101": lambda folder: {"food-101.tar.gz": packed(folder.parent, folder.name)},
    "oxford-pets": oxford_pets,
    "stl10": lambda folder: {"stl10_binary.tar.gz": packed(folder.parent, folder.name)},
    "sun397": lambda folder: {"SUN397.tar.gz": packed(folder.parent, folder.name)},
    "country211": lambda folder: {"country211.tgz": packed(folder.parent, folder.name)},
}


def serve_archives(name: str, folder: Path, server: Server) -> None:
    """Add the archives of a made-up dataset in `folder` to the server."""
    server.files |= {f"/{file}": content for file, content in ARCHIVES[name](folder).items()}


def download_from(server: Server, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let torchvision's downloads go to the server. Return the list of the original addresses, which grows.

    Also switch off torchvision's checksums, and use the test split where torchvision opens the training split.
    """
    asked: list[str] = []

    def from_server(url: str, path: Path, **options: Any) -> str:
        asked.append(url)
        return download(f"{server.url}/{Path(url).name}", path, **options)

    def is_available(path: str, md5: str | None = None) -> bool:
        return Path(path).exists()

    monkeypatch.setattr(fetch_from_torchvision, "download", from_server)
    for module in ("utils", "cifar", "stl10", "flowers102"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", is_available)
    for kind in (torchvision_datasets.CIFAR10, torchvision_datasets.CIFAR100, torchvision_datasets.STL10):
        monkeypatch.setattr(kind, "train_list", [*kind.test_list, kind.test_list[0]])
    return asked
