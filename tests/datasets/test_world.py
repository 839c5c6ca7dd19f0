"""Tests of the drawn scenes: images are reproducible per sample, and captions are true."""

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_vlm.core import random as randomness
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.datasets.mini import QUESTIONS, DrawnSource
from robustbench_vlm.datasets.world import vocabulary as words
from robustbench_vlm.datasets.world.captions import describe, is_true_of
from robustbench_vlm.datasets.world.drawing import draw
from robustbench_vlm.datasets.world.scenes import FAMILIES, Scenes, sample_scenes
from robustbench_vlm.datasets.world.shapes import PARTS, signed_distance

GOLDEN = {
    "backgrounds": "eadb26d05344c0249e905198bca36b42f01768140483880e33e86187687f65f4",
    "colours": "bf8b3d28df09da3158ce3d066aca24dec8d6fbd2632f325b0293c2c33534ebc0",
    "counting": "e1c25d91e12fb7952648d94600b6c0fd1f0aa9828d93cfbd04c89a6a4b3e78c1",
    "day-night": "fe436a043e9986e306442c17c07a72b793b8b366854f547d8ba54a79ace83703",
    "digits": "06e872a1f145f0d4deb23bb0cb0619ae843d3c1f896afd7210e43383454f8137",
    "fine-grained": "84a7809008a34de0f42032118196149539d8159fb4b44dc251b75ee734e31c73",
    "low-contrast": "ae9e1dc4849e8dfb909ebe500523b530ee361ccce55ce7d275b6c3e966a6355f",
    "outlines": "74756528a67cfd706a466201c35372e445d4eb525f6cd50305b91b43e2814eba",
    "positions": "829e085e341aa18c0544c0dd5302b8038dd9067e5fe4656528791b34307784b1",
    "relations": "7926027694af0ba82ba84aff1f0eb82a937648e1988f4934a3f1c70a658cdcc9",
    "scenes": "ef54a322c799870f36b535a5c436f83680e851dd2c3328fbf3951ae4b596f222",
    "shapes": "eb7e88c2226e534d780747df5ffad0ab4cc37bf7f7cbc379004a7841b74554a9",
    "textures": "1378aaa87e1a35de322e6e0392a57b19be5ecc023c71a9465db0f3a1bf748d8a",
}


def _scenes(family: str, count: int, seed: int = 0) -> Scenes:
    keys = randomness.sample_keys(seed, "test", [str(number) for number in range(count)])
    return sample_scenes(keys, family, {"outline": (0, 1), "faint": (0, 1)}, [])


@pytest.mark.parametrize("question", sorted(QUESTIONS))
def test_images_are_the_same_on_every_machine(question: str) -> None:
    images = DrawnSource(question, 64).read(range(64))
    assert hashlib.sha256(images.numpy().tobytes()).hexdigest() == GOLDEN[question]


@pytest.mark.parametrize("question", sorted(QUESTIONS))
def test_an_image_does_not_depend_on_its_batch(question: str) -> None:
    source = DrawnSource(question, 40)
    together = source.read(range(40))
    assert torch.equal(together[[31, 2, 17]], source.read([31, 2, 17]))
    assert torch.equal(together[5], source.read([5])[0])


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_caption_is_true_for_its_scene_and_contains_its_mentions(family: str) -> None:
    scenes = _scenes(family, 300)
    vocabularies = {"shape": words.SHAPES, "colour": words.COLOURS, "texture": words.TEXTURES}
    for counter in range(3):
        texts, mentions = describe(scenes, counter)
        assert is_true_of(scenes, mentions).diagonal().all()
        assert (scenes.attributes[mentions] >= 0).all()
        for attribute, vocabulary in vocabularies.items():
            for row in mentions[:, words.column(attribute)].nonzero()[:, 0].tolist():
                names = vocabulary[scenes[attribute][row]]
                assert any(name in texts[row] for name in names), (texts[row], attribute)


def test_captions_vary_and_mention_attributes() -> None:
    scenes = _scenes("single", 200)
    first, mentions = describe(scenes, 0)
    second, _ = describe(scenes, 1)
    assert sum(one != other for one, other in zip(first, second, strict=True)) > 180
    assert mentions.any(dim=1).all()


def test_a_caption_with_another_value_is_false() -> None:
    scenes = _scenes("single", 2)
    attributes = scenes.attributes.clone()
    attributes[0, words.column("colour")], attributes[1, words.column("colour")] = 0, 5
    mentions = torch.zeros(2, len(words.ATTRIBUTES), dtype=torch.bool)
    mentions[:, words.column("colour")] = True
    assert is_true_of(Scenes(attributes, scenes.keys), mentions).tolist() == [[True, False], [False, True]]


@given(shape=st.integers(0, len(PARTS) - 1))
@settings(max_examples=24, deadline=None)
def test_every_shape_fills_the_unit_square_and_stays_inside(shape: int) -> None:
    line = torch.linspace(-1.2, 1.2, 97)
    x, y = line.view(1, -1).expand(97, 97), line.view(-1, 1).expand(97, 97)
    inside = signed_distance(shape, x, y) < 0
    outside_box = (x.abs() > 1.06) | (y.abs() > 1.06)
    assert not (inside & outside_box).any()
    assert 0.1 < inside.float().mean().item() / (2 / 2.4) ** 2 < 0.85
    assert min(x[inside].abs().max(), y[inside].abs().max()) > 0.4
    assert max(x[inside].abs().max(), y[inside].abs().max()) > 0.75


def test_signed_distance_of_a_disc_and_a_square_is_exact() -> None:
    x, y = torch.tensor([2.0, 0.0, 0.9]), torch.tensor([0.0, 0.0, 0.0])
    assert torch.allclose(signed_distance(0, x, y), torch.tensor([1.1, -0.9, 0.0]), atol=1e-6)
    assert torch.allclose(signed_distance(2, x, y), torch.tensor([1.2, -0.8, 0.1]), atol=1e-6)


def test_vocabulary_has_the_expected_numbers_of_words() -> None:
    assert len(words.SHAPES) == len(PARTS) >= 20
    assert len(words.COLOURS) == len(words.COLOUR_VALUES) >= 12
    assert len(words.TEXTURES) >= 8
    names = [name for word in (*words.SHAPES, *words.COLOURS, *words.TEXTURES) for name in word]
    assert len(names) == len(set(names))


def test_track_has_datasets_with_many_five_and_two_classes() -> None:
    sizes = [len(DATASETS.load(name).classes) for name in QUESTIONS if name != "scenes"]
    assert len(sizes) >= 10 and max(sizes) >= 100 and 2 in sizes and 5 in sizes


def test_fine_tuning_images_differ_from_evaluation_images() -> None:
    fine_tuning = {bytes(image.numpy().tobytes()) for image in DrawnSource("scenes", 2000).read(range(2000))}
    shapes = {bytes(image.numpy().tobytes()) for image in DrawnSource("shapes", 500).read(range(500))}
    assert not fine_tuning & shapes


def test_images_with_more_objects_vary_more() -> None:
    source = DrawnSource("counting", 50)
    images = source.read(range(50)).float()
    one = [images[index].std() for index in range(50) if source.labels[index] == 0]
    five = [images[index].std() for index in range(50) if source.labels[index] == 4]
    assert sum(five) / len(five) > sum(one) / len(one)


def test_drawing_does_not_depend_on_the_number_of_threads() -> None:
    """Images are equal for any number of threads, because drawing never sums values in an undefined order."""
    before = torch.get_num_threads()
    scenes = _scenes("digit", 64)
    try:
        torch.set_num_threads(1)
        one = draw(scenes)
        torch.set_num_threads(2)
        assert torch.equal(one, draw(scenes))
    finally:
        torch.set_num_threads(before)
