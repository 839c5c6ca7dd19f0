"""The cards of the package: strict reading, stable content, and consistency with tracks, open_clip and defenses."""

import dataclasses
import json
import math
from pathlib import Path

import open_clip
import pytest
from jsonschema import Draft202012Validator

from robustbench_vlm.cli.main import run_command
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import package_folder
from robustbench_vlm.core.fingerprint import fingerprint, plain
from robustbench_vlm.defenses import DEFENSES
from robustbench_vlm.models import card_names
from robustbench_vlm.models.card import ModelCard, bundled_names, card_schema, find_card, read_card, write_card
from robustbench_vlm.models.checkpoint_formats import CHECKPOINT_FORMATS
from robustbench_vlm.models.classifier import load_model
from robustbench_vlm.models.open_clip import load_architecture
from robustbench_vlm.models.reference import OPEN_CLIP
from robustbench_vlm.tracks import TRACKS
from robustbench_vlm.training.finetune import Runtime
from robustbench_vlm.training.request import TrainingRequest, make_job

ALL = [(track, name) for track in TRACKS.table for name in card_names(track)]
REAL = [read_card(package_folder("model_zoo") / "zeroshot15" / f"{name}.json") for name in card_names("zeroshot15")]


def _named(card: ModelCard) -> str:
    return card.name


@pytest.mark.parametrize(("track", "name"), ALL)
def test_a_card_has_the_name_of_its_file_and_is_written_back_unchanged(track: str, name: str, tmp_path: Path) -> None:
    path = package_folder("model_zoo") / track / f"{name}.json"
    card = read_card(path)
    assert card.name == name
    write_card(card, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_bundled_models_are_the_models_of_the_mini_track() -> None:
    assert bundled_names("mini") == card_names("mini") and "agft" in bundled_names("mini")
    assert bundled_names("zeroshot15") == []


@pytest.mark.parametrize("name", ["clip", "agft"])
def test_the_digest_of_a_bundled_model_covers_its_architecture_and_its_two_files(name: str) -> None:
    card = find_card(name, "mini")
    assert card.image and card.text
    expected = fingerprint(["mini", card.image.sha256, card.text.sha256])
    assert load_model(name, "mini").digest == expected


@pytest.mark.parametrize("name", [name for name in bundled_names("mini") if name != "clip"])
def test_the_fingerprint_of_a_training_equals_the_one_in_the_card(name: str) -> None:
    training = find_card(name, "mini").training
    job = make_job(TrainingRequest(training["defense"], training["track"], seed=training["seed"]))
    assert job.identity == training["fingerprint"]
    assert plain(job.account).items() <= training.items()


@pytest.mark.parametrize("card", REAL, ids=_named)
def test_a_released_model_has_a_download_address_and_a_known_architecture(card: ModelCard) -> None:
    assert card.architecture.startswith(OPEN_CLIP) and card.paper.startswith("https://")
    load_architecture(card.architecture)
    if card.pretrained:
        name = card.architecture.removeprefix(OPEN_CLIP)
        assert card.pretrained in open_clip.list_pretrained_tags_by_model(name)
    if card.image:
        assert card.image.layout in {*CHECKPOINT_FORMATS, ""} and card.text is None
        assert card.image.url.startswith(("https://", "hf:")) or card.image.page.startswith("https://")
        # The project has never downloaded the file, and the card must say so. A digest needs a source.
        assert "never downloaded by us" in card.notes and card.licence
        assert ("the digest is the" in card.notes) == bool(card.image.sha256)
        assert bool(card.base) != (card.image.layout in ("clip", "transformers", ""))
    if card.base:
        assert find_card(card.base, "zeroshot15").architecture == card.architecture
    assert all(0 <= each.percent <= 100 and each.source for each in card.reported)


@pytest.mark.parametrize("card", REAL, ids=_named)
def test_weights_of_openai_use_quickgelu(card: ModelCard) -> None:
    """With another activation function, a CLIP of OpenAI would be less accurate without an error. LAION's use GELU."""
    config = load_architecture(card.architecture).config
    assert config.get("quick_gelu", False) == ("laion" not in card.name)


def test_every_base_has_a_card() -> None:
    names = {card.name for card in REAL}
    assert {card.base for card in REAL} - {""} <= names
    first, second = (find_card(f"pmg-aft-tinyimagenet{end}", "zeroshot15") for end in ("", "-imagenet-pixels"))
    assert first.image == second.image and first.mean is None and second.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("name", ["agft", "gladiator"])
def test_the_message_for_a_model_without_weights_has_the_training_command(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(["run", "--track", "zeroshot15", "--model", name, "--images", ".", "--json"]) == 2
    message = json.loads(capsys.readouterr().out)["error"]
    command = f"vlmbench train {name} --track zeroshot15 --images DIR"
    assert "no public weights exist for" in message and command in message
    assert f"trained/zeroshot15/{name}/{name}.json" in message
    assert name in DEFENSES.table


def test_a_locally_trained_model_is_loaded_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    places: list[Path] = []

    def train(order: object, runtime: Runtime, tell: object, resume: object) -> None:
        places.append(runtime.folder)

    monkeypatch.setattr("robustbench_vlm.training.finetune.train_defense", train)
    assert run_command(["train", "agft", "--track", "zeroshot15", "--images", "DIR"]) == 0
    assert places == [Path("trained/zeroshot15/agft")]
    source = find_card("clip", "mini")
    path = Path("trained/zeroshot15/agft/agft.json")
    assert source.image and source.text
    path.parent.mkdir(parents=True)
    for weights in (source.image, source.text):
        (path.parent / weights.file).write_bytes((Path(source.folder) / weights.file).read_bytes())
    write_card(ModelCard("agft", "mini", source.image, source.text), path)
    assert load_model("agft", "zeroshot15").digest == load_model("clip", "mini").digest
    # For a released model, local trainings are ignored.
    other = Path("trained/zeroshot15/fare-1/fare-1.json")
    write_card(ModelCard("fare-1", "mini", source.image, source.text), other)
    assert find_card("fare-1", "zeroshot15").base == "clip"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": "clip"}, "weights of an encoder are given twice"),
        ({"pretrained": "openai"}, "weights of an encoder are given twice"),
        ({"image": None}, "weights of an encoder are given twice"),
        ({"image": {"file": "a.pt", "sha256": ""}}, "must state the sha256 of a.pt"),
        ({"image": {"file": "a.pt", "sha256": "", "url": 1}}, "image/url: .* string, got 1"),
        ({"image": {"file": "a.pt", "sha256": "", "mirror": ""}}, "image/mirror: unknown field"),
        ({"mean": [0.5, 0.5]}, "mean/2: this field is required"),
        ({"mean": [0.5, 0.5, 0.5]}, "both mean and std"),
        ({"mean": [0.5, 0.5, 0.5], "std": [0.2, 0, 0.2]}, r"the std in \[0.001, 1\], got .* std \[0.2, 0.0, 0.2\]"),
        ({"mean": [0.5, 0.5, True], "std": [0.2, 0.2, 0.2]}, "mean/2: .* number, got True"),
        ({"name": 3}, "name: .* string, got 3"),
        ({"training": []}, "training: .* object"),
        ({"reported": [{"what": "clean", "percent": "9", "source": ""}]}, "reported/0/percent.*, got '9'"),
        ({"reported": 7}, "reported: .* array, got 7"),
        ({"folder": "x"}, "folder: unknown field"),
        ({"name": "x" * 201}, "name: .* at most 200 characters"),
        ({"training": {"a": [[[[[[[[1]]]]]]]]}}, "nested deeper than 8 levels"),
        ({"notes": "x" * 2**18}, "larger than 262,144 bytes"),
        ({"training": {"loss": float("nan")}}, "has NaN"),
        ({"notes": "\ud800"}, "lone surrogate"),
    ],
)
def test_cards_are_read_strictly(change: dict[str, object], message: str, tmp_path: Path) -> None:
    values = json.loads((package_folder("model_zoo") / "mini" / "clip.json").read_text())
    (tmp_path / "card.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(UserError, match=message):
        read_card(tmp_path / "card.json")


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((122.77, 116.75, 104.09), (68.5, 66.63, 70.32)),
        ((0.5, 0.5, 0.5), (63.75, 63.75, 63.75)),
        ((-0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        ((math.nan, 0.5, 0.5), (0.25, 0.25, 0.25)),
        ((0.5, 0.5, 0.5), (0.25, math.nan, 0.25)),
        ((0.5, math.inf, 0.5), (0.25, 0.25, 0.25)),
        ((0.5, 0.5, 0.5), (0.25, 0.25, 1e-300)),
    ],
)
def test_a_normalisation_that_is_not_for_pixels_in_0_to_1_is_refused(
    mean: tuple[float, float, float], std: tuple[float, float, float], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"pixels in .0, 255., divide them by 255"):
        ModelCard("own", "mini", mean=mean, std=std)
    with pytest.raises(ValueError, match=r"pixels in .0, 255., divide them by 255"):
        dataclasses.replace(load_architecture("mini"), mean=mean, std=std)
    values = json.loads((package_folder("model_zoo") / "mini" / "clip.json").read_text())
    (tmp_path / "card.json").write_text(json.dumps({**values, "mean": mean, "std": std}))
    with pytest.raises(UserError, match=r"card.json.*(NaN|Infinity|divide them by 255)"):
        read_card(tmp_path / "card.json")


@pytest.mark.parametrize(("mean", "std"), [((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), ((1, 0.5, 0), (0.001, 0.5, 1))])
def test_every_normalisation_for_pixels_in_0_to_1_is_accepted(
    mean: tuple[float, float, float], std: tuple[float, float, float]
) -> None:
    assert ModelCard("own", "mini", mean=mean, std=std).mean == mean


def test_cards_of_the_package_are_written_back_unchanged(tmp_path: Path) -> None:
    paths = sorted(package_folder("model_zoo").rglob("*.json"))
    assert len(paths) > 50
    for path in paths:
        write_card(read_card(path), tmp_path / "card.json")
        assert (tmp_path / "card.json").read_bytes() == path.read_bytes(), path


def test_the_json_schema_accepts_the_same_cards_as_the_reader() -> None:
    schema = card_schema()
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    for path in package_folder("model_zoo").rglob("*.json"):
        validator.validate(json.loads(path.read_text()))
    values = {"name": "a", "architecture": "mini"}
    for change in ({"name": 3}, {"run": "rm -rf"}, {"folder": "x"}, {"std": [0.2, 0, 0.2]}, {"image": {"file": "a"}}):
        assert not validator.is_valid({**values, **change}), change


def test_list_and_show_print_the_cards(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["list", "models", "--track", "zeroshot15"]) == 0
    listed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert set(card_names("zeroshot15")) <= set(listed)
    assert "no public weights: train it" in listed["agft"] and "download it by hand" in listed["saft"]
    assert run_command(["show", "model", "fare-1", "--track", "zeroshot15"]) == 0
    shown = capsys.readouterr().out
    for said in ("uni-tuebingen.de", "never downloaded by us", "base: clip", "percent: 60.5", "Table 10", "eps: 1/255"):
        assert said in shown
