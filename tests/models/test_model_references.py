"""The parser of model references: all forms, refused texts, and conversion back to text."""

from pathlib import Path

import pytest

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.models.card import find_card
from robustbench_vlm.models.reference import (
    CardFile,
    HuggingFaceModel,
    ModelName,
    ModelReference,
    OpenClipModel,
    parse_reference,
)

REFERENCES = {
    "agft": ModelReference(ModelName("agft")),
    "fare-4-vit-l-14": ModelReference(ModelName("fare-4-vit-l-14")),
    "../../etc/passwd": ModelReference(ModelName("../../etc/passwd")),
    "path/to/card.json": ModelReference(CardFile("path/to/card.json")),
    "path/a+b/c+d.json": ModelReference(CardFile("path/a+b/c+d.json")),
    "open_clip:ViT-B-32/openai": ModelReference(OpenClipModel("ViT-B-32", "openai")),
    "open_clip:ViT-B-32/a+b": ModelReference(OpenClipModel("ViT-B-32", "a+b")),
    "hf:org/name": ModelReference(HuggingFaceModel("org/name")),
    "hf:org/name@v1/a+b": ModelReference(HuggingFaceModel("org/name", "v1/a+b")),
    "hf:org/name+org/lora": ModelReference(HuggingFaceModel("org/name", "", "org/lora")),
    "hf:org/name+org/lora@v2": ModelReference(HuggingFaceModel("org/name", "", "org/lora@v2")),
    "hf:org/name@v1+./my+lora": ModelReference(HuggingFaceModel("org/name", "v1", "./my+lora")),
    "hf:org/name+lora": ModelReference(HuggingFaceModel("org/name", "", "lora")),
    "hf:org/name@v1+fix": ModelReference(HuggingFaceModel("org/name", "v1+fix")),
    "ttc+agft": ModelReference(ModelName("agft"), "ttc"),
    "r-tpt@16+path/a+b.json": ModelReference(CardFile("path/a+b.json"), "r-tpt@16"),
    "ttc+open_clip:ViT-B-32/openai": ModelReference(OpenClipModel("ViT-B-32", "openai"), "ttc"),
    "ttc+hf:org/name@main": ModelReference(HuggingFaceModel("org/name", "main"), "ttc"),
    "ttc+a.json": ModelReference(CardFile("a.json"), "ttc"),
}


@pytest.mark.parametrize("text", REFERENCES)
def test_str_of_a_parsed_reference_is_the_original_text(text: str) -> None:
    assert parse_reference(text) == REFERENCES[text]
    assert str(parse_reference(text)) == text


def test_an_existing_card_file_with_a_plus_in_its_name_is_not_a_defense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_reference("ttc+a.json").defense == "ttc"
    Path("ttc+a.json").write_text("{}")
    assert parse_reference("ttc+a.json") == ModelReference(CardFile("ttc+a.json"))
    assert parse_reference("ttc+ttc+a.json") == ModelReference(CardFile("ttc+a.json"), "ttc")
    assert parse_reference(f"ttc+{'a' * 5000}.json").defense == "ttc"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("open_clip:ViT-B-32", "as in open_clip:ARCH/TAG"),
        ("open_clip:/openai", "as in open_clip:ARCH/TAG"),
        ("ttc+open_clip:ViT-B-32/", "as in open_clip:ARCH/TAG"),
        ("hf:name", "write hf:ORG/NAME"),
        ("hf:org/", "write hf:ORG/NAME"),
        ("hf:org/name/file.bin", "write hf:ORG/NAME"),
        ("hf:name+org/lora", "write hf:ORG/NAME"),
        ("hf:org/name+", "no adapter after the plus"),
        ("ttc+r-tpt+clip", "two test-time defenses, 'ttc' and 'r-tpt'"),
    ],
)
def test_malformed_references_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_reference(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "hf:org/name",
            r"does not have a model card. Expected a name, a card .*, or open_clip:ARCH/TAG:",
        ),
        ("ttc+clip", "give 'clip'"),
        ("x.pt", r"'x\.pt' is a file of weights, expected .* `vlmbench convert x\.pt --base NAME`"),
        ("runs/model.SAFETENSORS", r"is a file of weights, expected a name, a card file"),
        ("clop", r"unknown model 'clop'\. Did you mean clip.* Expected a name, .*, hf:ORG/NAME, or DEFENSE"),
    ],
)
def test_references_without_a_card_are_refused_with_the_accepted_forms(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_card(text, "mini")
