"""Cards from other people: the digest covers the files that were read, and a card names only files in its folder."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import package_folder
from robustbench_vlm.models.card import card_names, find_card, read_card
from robustbench_vlm.models.convert import convert
from robustbench_vlm.models.loading import assemble
from robustbench_vlm.models.open_clip import constants_digest, load_architecture
from robustbench_vlm.models.weights import split_encoders
from robustbench_vlm.models.weights_cache import cached

MakeCard = Callable[..., Path]


def _rewritten(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return path


def test_the_digests_of_the_bundled_models_have_not_changed() -> None:
    board = package_folder("leaderboards") / "mini"
    for name in ("clip", "agft"):
        entry = json.loads((board / f"{name}.json").read_text())
        assert assemble(find_card(name, "mini"), "mini").digest == entry["weights"]


@pytest.mark.parametrize("part", ["image", "text"])
def test_files_without_a_stated_digest_are_part_of_the_digest(part: str, make_card: MakeCard) -> None:
    path = make_card()
    url = "https://example.org/weights.safetensors"
    original = path.parent / getattr(read_card(path), part).file
    tensors = load_file(original)
    _rewritten(path, lambda card: card[part].update(url=url, sha256=""))
    place = cached(getattr(read_card(path), part))
    place.parent.mkdir(parents=True, exist_ok=True)
    found = []
    for change in (0.0, 1e-3):
        name = max(tensors, key=lambda key: tensors[key].numel())
        save_file({**tensors, name: tensors[name] + change}, place)
        place.with_name(f"{place.name}.sha256").unlink(missing_ok=True)
        found.append(assemble(read_card(path), "mini").digest)
    place.unlink()
    place.with_name(f"{place.name}.sha256").unlink()
    assert found[0] != found[1]


def test_the_constants_of_an_open_clip_architecture_are_part_of_the_digest() -> None:
    first = load_architecture("open_clip:ViT-B-32")
    assert constants_digest(first) != constants_digest(load_architecture("open_clip:ViT-B-32-quickgelu"))
    assert constants_digest(load_architecture("mini")) == ()
    assert constants_digest(dataclasses.replace(first, mean=(0.1, 0.2, 0.3))) != constants_digest(first)


@pytest.mark.parametrize("name", ["local-dir:/etc", "local-dir:.", "hf-hub:org/name", "../ViT-B-32"])
def test_an_architecture_outside_open_clip_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="open_clip architecture"):
        load_architecture(f"open_clip:{name}")


@pytest.mark.parametrize("base", ["/absolute.json", "../clip.json", "a/../../clip.json", "link.json"])
def test_a_base_outside_the_folder_of_the_card_is_refused(base: str, make_card: MakeCard, tmp_path: Path) -> None:
    path = make_card()
    outside = _rewritten(make_card("clip"), lambda card: None).rename(tmp_path / "clip.json")
    (path.parent / "link.json").symlink_to(outside)
    base = str(outside) if base.startswith("/") else base
    _rewritten(path, lambda card: (card.pop("text"), card.update(base=base)))
    with pytest.raises(UserError, match="it must be a card in the folder of this card: copy the card"):
        assemble(read_card(path), "mini")


def test_a_base_in_the_folder_of_the_card_is_accepted(make_card: MakeCard) -> None:
    path, below = make_card(), make_card("clip", 1)
    _rewritten(path, lambda card: (card.pop("text"), card.update(base="clip.json")))
    assert assemble(read_card(path), "mini").digest != assemble(read_card(below), "mini").digest


@pytest.mark.parametrize(
    "url",
    [
        *("hf:../../a/b.pt", "hf:o/../b.pt", "hf:o/n/../../b.pt", "hf:o/n/a//b.pt", "hf:o/n", "hf:o/n/", "hf:/n/b.pt"),
        *("hf:o/n/a\\..\\b.pt", "hf:o/n/./b.pt", "hf:o?/n/b.pt", "ftp://example.org/a.pt", "file:///etc/passwd", "x"),
    ],
)
def test_an_address_that_is_no_https_or_hub_address_is_refused(url: str, make_card: MakeCard) -> None:
    path = _rewritten(make_card(), lambda card: card["image"].update(url=url))
    with pytest.raises(UserError, match=r"image: .*the url must be an https address or hf:OWNER/NAME/FILE"):
        read_card(path)


def test_all_cards_of_the_package_are_accepted() -> None:
    for track in ("mini", "zeroshot15"):
        for name in card_names(track):
            assert find_card(name, track).base_reference is not None


def test_the_text_encoder_of_a_base_in_another_folder_is_copied(make_card: MakeCard, tmp_path: Path) -> None:
    base = make_card("base", 1)
    checkpoint = make_card("other").parent / "other-image.safetensors"
    card = read_card(convert(checkpoint, str(base), "mini", tmp_path / "out", name="mine"))
    assert not card.base and card.text and (tmp_path / "out" / card.text.file).is_file()
    text = split_encoders(assemble(card, "mini").network)[1]
    expected = split_encoders(assemble(read_card(base), "mini").network)[1]
    assert all(bool((text[key] == expected[key]).all()) for key in expected)
    inside = read_card(convert(checkpoint, str(base), "mini", base.parent, name="near"))
    assert inside.base == "base.json" and not inside.text
