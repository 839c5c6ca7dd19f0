"""A person's own pictures: one folder a class, any size and format that Pillow reads."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from robustbench_vlm.datasets.dataset import Dataset, UnreadableImage
from robustbench_vlm.errors import UserError


class FolderSource:
    """The pictures below `path`, resized (bicubic) and centre-cropped to `side` x `side`."""

    def __init__(self, path: str, side: int) -> None:
        self._root, self._side = Path(path), side
        classes = _classes(self._root)
        files = [(file, label) for label, name in enumerate(classes) for file in _files(self._root / name)]
        self.ids = tuple(file.relative_to(self._root).as_posix() for file, _ in files)
        self.labels = tuple(label for _, label in files)

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return pictures, uint8 (B, 3, side, side)."""
        return torch.stack([self._picture(self._root / self.ids[index]) for index in indices])

    def _picture(self, path: Path) -> Tensor:
        import numpy
        from PIL import Image, ImageOps

        try:
            with Image.open(path) as file:
                picture = ImageOps.exif_transpose(file).convert("RGB")
        # Pillow's decoders raise almost anything on broken files.
        except Exception as error:
            raise UnreadableImage(
                f"cannot read the image {path}: {error}; mend or remove it, or go on without it by --skip-unreadable"
            ) from error
        square = ImageOps.fit(picture, (self._side, self._side), Image.Resampling.BICUBIC)
        return torch.from_numpy(numpy.array(square)).permute(2, 0, 1).contiguous()


def folder_dataset(path: Path, prompt: str, side: int) -> Dataset:
    """Return the data set of a folder with one sub-folder a class; raise UserError where it is none."""
    classes = _classes(path)
    return Dataset(
        name=path.resolve().name,
        classes=tuple(name.replace("_", " ") for name in classes),
        prompt=prompt,
        source="robustbench_vlm.datasets.folder:FolderSource",
        options={"path": str(path.resolve()), "side": side},
        split="all",
        description="pictures of a local folder",
    )


def _classes(path: Path) -> list[str]:
    if not path.is_dir():
        raise UserError(f"there is no folder {path}: --images takes a folder with one sub-folder a class")
    names = sorted(child.name for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    classes = [name for name in names if _files(path / name)]
    if len(classes) < 2:
        raise UserError(f"{path} holds {len(classes)} sub-folder(s) with images: it takes two or more, one a class")
    return classes


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
