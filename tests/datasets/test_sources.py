"""Tests of images that are not drawn by code: handwritten digits and folders of users."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.datasets.base import Dataset, UnreadableImage, image_sha256
from robustbench_vlm.datasets.image_folder import folder_dataset, training_folder
from robustbench_vlm.datasets.mini import HANDWRITTEN

PROMPT = "This is a photo of a {}."
REAL = Path(__file__).parents[2].parent / "shared" / "data" / "real"


def test_handwritten_digits_keep_their_mean_brightness() -> None:
    from sklearn.datasets import load_digits

    source = HANDWRITTEN.open()
    original = load_digits()
    assert len(source.ids) == len(set(source.ids)) == 1797
    assert list(source.labels) == original.target.tolist()
    images = source.read(range(100))
    assert images.shape == (100, 3, 32, 32) and images.dtype == torch.uint8
    ink = torch.from_numpy(original.images[:100]).mean(dim=(1, 2)) / 16
    assert torch.allclose(images.double().mean(dim=(1, 2, 3)) / 255, ink, atol=0.01)


def _picture(mode: str, size: tuple[int, int] = (50, 40)) -> Image.Image:
    pixels = numpy.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=numpy.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, mode, suffix in (("cat", "L", "png"), ("sea_lion", "CMYK", "jpg"), ("dog", "P", "gif")):
        (tmp_path / name).mkdir()
        _picture(mode).save(tmp_path / name / f"one.{suffix}")
    _picture("RGBA").save(tmp_path / "dog" / "two.webp")
    _picture("RGB").save(tmp_path / "dog" / "really_a_png.jpg", format="png")
    return tmp_path


def test_folder_names_are_class_names_and_all_formats_are_read(folder: Path) -> None:
    dataset = folder_dataset(folder, "a photo of a {}.", 32)
    assert dataset.classes == ("cat", "dog", "sea lion")
    assert dataset.prompts[2] == "a photo of a sea lion."
    source = dataset.open()
    assert source.ids == ("cat/one.png", "dog/one.gif", "dog/really_a_png.jpg", "dog/two.webp", "sea_lion/one.jpg")
    assert source.labels == (0, 1, 1, 1, 2)
    images = source.read(range(5))
    assert images.shape == (5, 3, 32, 32) and images.dtype == torch.uint8
    assert image_sha256(images[1]) == image_sha256(source.read([1])[0])


def test_error_names_a_truncated_image(folder: Path) -> None:
    path = folder / "cat" / "one.png"
    path.write_bytes(path.read_bytes()[:200])
    source = folder_dataset(folder, "a {}.", 32).open()
    with pytest.raises(UnreadableImage, match=r"cat/one\.png.*repair or remove the file$"):
        source.read([0])


def test_error_names_a_text_file_in_a_class_folder(folder: Path) -> None:
    (folder / "cat" / "notes.txt").write_text("no image")
    with pytest.raises(UnreadableImage, match=r"notes\.txt"):
        folder_dataset(folder, "a {}.", 32).open().read([0])


@pytest.mark.parametrize("name", [b"cat/caf\xe9.png", b"\xe9t\xe9/one.png", b"cat/\xff.png"])
def test_file_names_that_are_not_utf8_are_an_error(name: bytes, folder: Path) -> None:
    path = folder / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    path.touch()
    with pytest.raises(UserError, match=r"\\x(e9|ff).* is not UTF-8.*rename it") as caught:
        folder_dataset(folder, "a {}.", 32).open()
    str(caught.value).encode()


def test_folder_name_that_is_not_utf8_is_an_error(folder: Path) -> None:
    odd = os.fsdecode(os.fsencode(folder.parent) + b"/caf\xe9")
    folder.rename(odd)
    with pytest.raises(UserError, match=r"caf\\xe9 is not UTF-8"):
        folder_dataset(Path(odd), "a {}.", 32)


@pytest.mark.parametrize("problem", ["missing", "one class", "no placeholder"])
def test_errors_for_unusable_folders_name_the_expected_layout(folder: Path, problem: str) -> None:
    with pytest.raises(UserError, match=r"sub-folder|\{\}"):
        if problem == "missing":
            folder_dataset(folder / "nowhere", "a {}.", 32)
        elif problem == "one class":
            folder_dataset(folder / "cat", "a {}.", 32)
        else:
            folder_dataset(folder, "a photo", 32)


def test_images_in_sub_folders_of_a_class_are_read(folder: Path) -> None:
    _picture("RGB").save(_made(folder / "dog" / "more" / "deep") / "three.png")
    _picture("RGB").save(_made(folder / "fox" / "more") / "one.png")
    (_made(folder / "dog" / ".hidden") / "no.png").write_bytes(b"")
    dataset = folder_dataset(folder, "a {}.", 32)
    assert dataset.classes == ("cat", "dog", "fox", "sea lion")
    ids = dataset.open().ids
    assert "dog/more/deep/three.png" in ids and "fox/more/one.png" in ids and len(ids) == 7


def test_empty_class_folders_and_images_without_class_are_an_error(folder: Path) -> None:
    _made(folder / "fox" / "more")
    _made(folder / "owl")
    with pytest.raises(UserError, match=r"2 sub-folder.*: fox, owl\. .*add images to it, or remove it"):
        folder_dataset(folder, "a {}.", 32)
    (folder / "fox" / "more").rmdir()
    (folder / "fox").rmdir()
    (folder / "owl").rmdir()
    _picture("RGB").save(folder / "stray.PNG")
    with pytest.raises(UserError, match=r"not in the sub-folder of a class: stray\.PNG\. Move or remove"):
        folder_dataset(folder, "a {}.", 32)


@pytest.mark.parametrize("target", [".", "..", "../..", "../dog", "/"])
def test_links_to_parent_folders_are_not_followed(target: str, folder: Path) -> None:
    (folder / "dog" / "link").symlink_to(target)
    assert len(folder_dataset(folder, "a {}.", 32).open().ids) == 5


def test_broken_links_are_unreadable_images(folder: Path) -> None:
    (folder / "cat" / "loop.png").symlink_to("loop.png")
    (folder / "loop").symlink_to("loop")
    source = folder_dataset(folder, "a {}.", 32).open()
    with pytest.raises(UnreadableImage, match=r"cat/loop\.png"):
        source.read([source.ids.index("cat/loop.png")])


LATIN_1 = """
import sys
from pathlib import Path
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.datasets.image_folder import folder_dataset
try:
    print(ascii(folder_dataset(Path(sys.argv[1]), "a {}.", 32).classes))
except UserError as error:
    print(ascii(str(error)))
"""


@pytest.mark.skipif(not shutil.which("localedef"), reason="needs localedef to make a Latin-1 locale")
def test_file_names_are_utf8_in_a_latin_1_locale_or_refused(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    locales = tmp_path_factory.mktemp("locales")
    command = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(locales / "en_US.ISO-8859-1")]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("the sources of the locale are not installed")
    (folder / "cat").rename(folder / "café")

    def classes(**variables: str) -> str:
        environment = {**os.environ, "LC_ALL": "en_US.ISO-8859-1", "LOCPATH": str(locales), **variables}
        return subprocess.run(
            [sys.executable, "-c", LATIN_1, str(folder)], env=environment, capture_output=True, text=True, check=True
        ).stdout

    refused = classes(PYTHONUTF8="0")
    assert r"caf\xe9" in refused and "iso8859-1, expected UTF-8" in refused and "PYTHONUTF8=1" in refused
    assert classes(PYTHONUTF8="1") == "('caf\\xe9', 'dog', 'sea lion')\n" == classes(LC_ALL="C.UTF-8")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def test_dataset_with_one_class_is_an_error() -> None:
    with pytest.raises(UserError, match="at least two"):
        Dataset("d", ("one",), "a {}.", "m:f")


@pytest.mark.skipif(not REAL.is_dir(), reason="the real images are not next to this checkout")
@pytest.mark.parametrize("name", ["cifar10", "dtd", "sun397"])
def test_real_folders_are_read_whole(name: str) -> None:
    source = folder_dataset(REAL / name, "a photo of a {}.", 32).open()
    assert source.read(range(len(source.ids))).shape == (len(source.ids), 3, 32, 32)


def test_imagenet_folder_has_all_1000_classes_in_order(tmp_path: Path) -> None:
    for name in ("train/n02123045", "train/n01440764", "train/stray", "val/n01440764"):
        (tmp_path / name).mkdir(parents=True)
        _picture("RGB").save(tmp_path / name / "one.JPEG")
    (tmp_path / "train" / "readme.txt").write_text("a file beside the folders")
    (tmp_path / "train" / "n01440764" / ".hidden").write_text("no image")
    dataset = training_folder(tmp_path, PROMPT, 32)
    assert dataset.name == "imagenet" and len(dataset.classes) == 1000
    source = dataset.open()
    assert source.ids == ("n01440764/one.JPEG", "n02123045/one.JPEG") and source.labels == (0, 281)
    assert dataset.prompts[281] == "This is a photo of a tabby." and source.read([0, 1]).shape == (2, 3, 32, 32)


def test_imagenet_class_names_match_their_wordnet_ids(tmp_path: Path) -> None:
    from timm.data import ImageNetInfo

    (tmp_path / "n01440764").mkdir()
    _picture("RGB").save(tmp_path / "n01440764" / "one.JPEG")
    names = training_folder(tmp_path, PROMPT, 32).classes
    info = ImageNetInfo("imagenet-1k")
    described = [description.lower() for description in info.label_descriptions()]
    same = [name.split()[-1] in text.replace("-", " ") for name, text in zip(names, described, strict=True)]
    # Some words differ between the two lists. If one list were shifted by one class, almost no names would agree.
    assert sum(same) > 900
    # In the list, two names occur twice. In lower case, the dog "Cardigan" also equals the jacket "cardigan".
    assert len(set(names)) == 997 and [names.count(word) for word in ("crane", "maillot", "cardigan")] == [2, 2, 2]


def test_training_folder_without_wordnet_ids_has_its_own_classes(folder: Path) -> None:
    dataset = training_folder(folder, PROMPT, 32)
    assert dataset.classes == ("cat", "dog", "sea lion") and dataset.prompts[2] == "This is a photo of a sea lion."


@pytest.mark.skipif(not REAL.is_dir(), reason="the real images are not here")
def test_real_imagenet_images_are_read() -> None:
    source = training_folder(REAL / "tiny_imagenet", PROMPT, 64).open()
    assert len(source.ids) == 1000 and len(set(source.labels)) == 200
    assert source.read(range(0, 1000, 25)).shape == (40, 3, 64, 64)
