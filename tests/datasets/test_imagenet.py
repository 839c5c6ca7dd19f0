"""Tests of training folders: ImageNet's layout, image modes and formats, and folders with another layout."""

from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.datasets.base import UnreadableImage
from robustbench_vlm.datasets.image_folder import imagenet_folder, training_folder

PROMPT = "This is a photo of a {}."
REAL = Path(__file__).parents[2].parent / "shared" / "data" / "real"
TENCH, GOLDFISH, TABBY = "n01440764", "n01443537", "n02123045"
RED, BLUE = (200, 30, 30), (30, 30, 200)


def _halves(size: tuple[int, int] = (60, 40)) -> Image.Image:
    """Return an image that is red on the left and blue on the right."""
    picture = Image.new("RGB", size, RED)
    picture.paste(BLUE, (size[0] // 2, 0, *size))
    return picture


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return a function (name, image, options of Pillow's save) that writes an image and returns its path."""

    def save(name: str, picture: Image.Image | None = None, **options: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (picture or _halves()).save(path, **options)
        return path

    return save


@pytest.mark.parametrize(
    ("place", "wnid", "name"),
    [
        (0, TENCH, "tench"),
        (1, GOLDFISH, "goldfish"),
        (2, "n01484850", "great white shark"),
        (151, "n02085620", "chihuahua"),
        (207, "n02099601", "golden retriever"),
        (281, TABBY, "tabby"),
        (407, "n02701002", "ambulance"),
        (751, "n04037443", "racer"),
        (817, "n04285008", "sports car"),
        (999, "n15075141", "toilet tissue"),
    ],
)
def test_class_names_and_labels_of_known_wordnet_ids(
    tmp_path: Path, write: Callable[..., Path], place: int, wnid: str, name: str
) -> None:
    write(f"{wnid}/one.JPEG")
    dataset = imagenet_folder(tmp_path, PROMPT, 16)
    assert dataset.classes[place] == name and dataset.prompts[place] == f"This is a photo of a {name}."
    assert dataset.open().labels == (place,)


def test_wordnet_ids_are_in_the_order_of_timm(tmp_path: Path, write: Callable[..., Path]) -> None:
    from timm.data import ImageNetInfo

    write(f"{TENCH}/one.JPEG")
    assert list(imagenet_folder(tmp_path, PROMPT, 16).options["classes"]) == ImageNetInfo("imagenet-1k").label_names()


def test_images_of_every_mode_and_format_are_read(tmp_path: Path, write: Callable[..., Path]) -> None:
    write(f"{TENCH}/grey.JPEG", _halves().convert("L"))
    write(f"{TENCH}/inks.JPEG", _halves().convert("CMYK"))
    write(f"{TENCH}/palette.png", _halves().convert("P"))
    write(f"{TENCH}/png_in_truth.JPEG", format="png")
    write(f"{TENCH}/plain.JPEG", quality=95)
    source = imagenet_folder(tmp_path, PROMPT, 16).open()
    images = source.read(range(5)).float()
    assert images.shape == (5, 3, 16, 16)
    grey, *coloured = images
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])
    for image in coloured:
        assert (image[:, 8, 2] - torch.tensor(RED)).abs().max() < 25
        assert (image[:, 8, 13] - torch.tensor(BLUE)).abs().max() < 25


def test_exif_rotation_is_applied(tmp_path: Path, write: Callable[..., Path]) -> None:
    upright = Image.Exif()
    upright[0x0112] = 6  # to be turned by 90 degrees clockwise: the left becomes the top
    write(f"{TENCH}/turned.JPEG", exif=upright, quality=95)
    (image,) = imagenet_folder(tmp_path, PROMPT, 16).open().read([0]).float()
    assert image[0, 1, 8] > 150 > 80 > image[0, 14, 8]


def test_short_side_is_resized_and_centre_is_cropped(tmp_path: Path, write: Callable[..., Path]) -> None:
    columns = numpy.repeat(numpy.arange(120, dtype=numpy.uint8)[None, :, None], 40, axis=0).repeat(3, axis=2)
    write(f"{TENCH}/ramp.png", Image.fromarray(columns))
    (image,) = imagenet_folder(tmp_path, PROMPT, 20).open().read([0])
    # Columns 40 to 79 are the middle square; each of ours is the mean of two of them.
    expected = torch.arange(40, 80).float().view(20, 2).mean(dim=1)
    assert (image[0].float() - expected).abs()[:, 1:-1].max() <= 1


def test_errors_name_truncated_images_and_other_files(tmp_path: Path, write: Callable[..., Path]) -> None:
    whole = write(f"{TENCH}/half.JPEG", quality=95)
    whole.write_bytes(whole.read_bytes()[:500])
    (tmp_path / TENCH / "boxes.txt").write_text("0 0 10 10")
    write(f"{TENCH}/whole.JPEG")
    source = imagenet_folder(tmp_path, PROMPT, 16).open()
    assert source.ids == (f"{TENCH}/boxes.txt", f"{TENCH}/half.JPEG", f"{TENCH}/whole.JPEG")
    for index, name in ((0, r"boxes\.txt"), (1, r"half\.JPEG")):
        with pytest.raises(UnreadableImage, match=name):
            source.read([index])
    assert source.read([2]).shape == (1, 3, 16, 16)


def test_files_that_are_not_images_of_a_class_are_ignored(tmp_path: Path, write: Callable[..., Path]) -> None:
    write(f"{TABBY}/one.JPEG")
    write("stray.JPEG")
    write(f"{TABBY}/.hidden.JPEG")
    write(f".{TENCH}/one.JPEG")
    write("n99999999/one.JPEG")
    write(f"{TABBY}/images/below.JPEG")
    (tmp_path / GOLDFISH).mkdir()
    (tmp_path / "README").write_text("no image")
    source = imagenet_folder(tmp_path, PROMPT, 16).open()
    assert (source.ids, source.labels) == ((f"{TABBY}/one.JPEG", f"{TABBY}/images/below.JPEG"), (281, 281))


def test_labels_do_not_depend_on_the_classes_in_the_folder(tmp_path: Path, write: Callable[..., Path]) -> None:
    for name in ("train/n15075141/b.JPEG", f"train/{TABBY}/z.JPEG", f"train/{TABBY}/a.JPEG", f"val/{TENCH}/v.JPEG"):
        write(name)
    source = training_folder(tmp_path, PROMPT, 16).open()
    assert source.ids == (f"{TABBY}/a.JPEG", f"{TABBY}/z.JPEG", "n15075141/b.JPEG")
    assert source.labels == (281, 281, 999)
    assert training_folder(tmp_path / "val", PROMPT, 16).open().labels == (0,)


def test_symlinked_class_folder_is_read(tmp_path: Path, write: Callable[..., Path]) -> None:
    write(f"elsewhere/{TENCH}/one.JPEG")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / TENCH).symlink_to(tmp_path / "elsewhere" / TENCH)
    assert imagenet_folder(tmp_path / "linked", PROMPT, 16).open().ids == (f"{TENCH}/one.JPEG",)


@pytest.mark.parametrize("make", [imagenet_folder, training_folder])
def test_folder_without_imagenet_classes_is_an_error(
    tmp_path: Path, write: Callable[..., Path], make: Callable[..., object]
) -> None:
    for number in range(5):
        write(f"n9999999{number}/one.JPEG")
    with pytest.raises(UserError, match=r"ImageNet-1k.*n99999990, n99999991, n99999992 and 2 more.*n01440764"):
        make(tmp_path, PROMPT, 16)


def test_empty_and_missing_folders_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Its sub-folders are: none\. .*n01440764 \(tench\)"):
        imagenet_folder(tmp_path, PROMPT, 16)
    with pytest.raises(UserError, match="there is no folder"):
        imagenet_folder(tmp_path / "nowhere", PROMPT, 16)


def test_class_folders_without_images_are_an_error(tmp_path: Path) -> None:
    (tmp_path / TENCH / "images").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"do not contain images.*{TENCH}/one\.JPEG"):
        training_folder(tmp_path, PROMPT, 16)


def test_folder_train_is_read_with_its_class_names(tmp_path: Path, write: Callable[..., Path]) -> None:
    for name in ("sea_lion", "cat"):
        write(f"train/{name}/one.png")
    dataset = training_folder(tmp_path, PROMPT, 16)
    assert dataset.classes == ("cat", "sea lion") and dataset.prompts[1] == "This is a photo of a sea lion."


def test_a_class_may_have_the_name_train(tmp_path: Path, write: Callable[..., Path]) -> None:
    for name in ("car", "plane", "train"):
        write(f"{name}/one.png")
    assert training_folder(tmp_path, PROMPT, 16).classes == ("car", "plane", "train")


@pytest.mark.skipif(not REAL.is_dir(), reason="the real images are not next to this checkout")
def test_labels_of_real_images_match_their_wordnet_ids() -> None:
    from timm.data import ImageNetInfo

    ids = ImageNetInfo("imagenet-1k").label_names()
    source = imagenet_folder(REAL / "tiny_imagenet", PROMPT, 64).open()
    assert len(source.ids) == 1000
    assert [ids[label] for label in source.labels] == [name.partition("/")[0] for name in source.ids]
