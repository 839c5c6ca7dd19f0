"""The commands pretrain and train, from names to cards that load."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch

from robustbench_vlm.errors import UserError
from robustbench_vlm.files import sha256_of
from robustbench_vlm.models.card import read_card
from robustbench_vlm.models.clip import load_model
from robustbench_vlm.training.commands import Order, pretrain_base, train_defense
from robustbench_vlm.training.pretraining import Settings

SMALL = Settings(pictures=128, epochs=1, batch=32, warmup=2, save_every=2)


def test_pretraining_makes_a_model_that_loads_and_again_the_same(tmp_path: Path) -> None:
    cards = [pretrain_base("mini", tmp_path / name, lambda line: None, SMALL) for name in ("one", "two")]
    model = load_model(str(cards[0]), "mini")
    logits = model.classifier(["a red star", "a blue circle"])(torch.rand(2, 3, 32, 32))
    assert logits.shape == (2, 2) and logits.dtype == torch.float32
    assert read_card(cards[0]).image == read_card(cards[1]).image
    assert read_card(cards[0]).text.sha256 == sha256_of(tmp_path / "two" / "text.safetensors")


def _order(**changes: object) -> Order:
    values = {"defense": "agft", "track": "mini", "eps": Fraction(8, 255), "epochs": 1, "pictures": 256, **changes}
    return Order(**values)  # type: ignore[arg-type]


def test_training_makes_a_card_that_accounts_for_itself(tmp_path: Path) -> None:
    path = train_defense(_order(settings={"gamma": 0.5, "rate": 1e-4}), tmp_path, lambda line: None)
    card = read_card(path)
    assert card.defense == "agft" and card.training["parent"] == "clip"
    assert card.training["settings"]["gamma"] == 0.5 and card.training["schedule"]["rate"] == 1e-4
    base, trained = load_model("clip", "mini"), load_model(str(path), "mini")
    assert trained.digest != base.digest and card.text.sha256 == base.card.text.sha256  # type: ignore[union-attr]


def test_a_folder_of_another_training_is_not_taken_over(tmp_path: Path) -> None:
    train_defense(_order(), tmp_path, lambda line: None)
    with pytest.raises(UserError, match="another training"):
        train_defense(_order(seed=1), tmp_path, lambda line: None)


@pytest.mark.parametrize("settings", [{"gama": 0.4}, {"rate": float("nan")}])
def test_wrong_settings_are_named(tmp_path: Path, settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"gamma|finite"):
        train_defense(_order(settings=settings), tmp_path, lambda line: None)
    with pytest.raises(UserError, match="agft"):
        train_defense(_order(defense="agtf"), tmp_path, lambda line: None)
