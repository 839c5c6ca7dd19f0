"""Test the protocol of --images, and the sizes and radii at which models of several input sizes are attacked."""

import json
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from robustbench_vlm import evaluate, load_dataset, zero_shot
from robustbench_vlm.cli.main import run_command
from robustbench_vlm.cli.plan import settings
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.fingerprint import fingerprint
from robustbench_vlm.datasets.transform import NATIVE, Transform
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resolve import Plan, resolve
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.run import run
from robustbench_vlm.models.in_memory import InMemoryModel, registered
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.protocols.base import Protocol
from robustbench_vlm.protocols.describe import read_protocol
from robustbench_vlm.protocols.images import IMAGES

IDENTITIES = {
    "mini": "38b50208b67e",
    "mini-quick": "aa9ec537d1b9",
    "trusted": "67d2c32cb647",
    "agft-2026": "1e6e04915a9c",
    "fare-2024": "ee00fd813c10",
    "tecoa-2023": "fa69189de985",
    "tga-2024": "390a0f9df836",
}
"""The fingerprints of the protocols before `images` and `trusted-native` existed. Records on disk depend on them."""


class Encoder(nn.Module):
    """An image encoder that accepts only images of one size."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 16, stride=16), nn.Flatten(), nn.Linear(4 * (side // 16) ** 2, 8))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels)


def text_features(texts: list[str]) -> Tensor:
    return torch.stack([torch.randn(8, generator=torch.Generator().manual_seed(len(text))) for text in texts])


def model_of(side: int, name: str = "") -> InMemoryModel:
    torch.manual_seed(0)
    half = (0.5, 0.5, 0.5)
    return zero_shot(
        image_encoder=Encoder(side),
        text_encoder=text_features,
        logit_scale=100.0,
        image_size=side,
        mean=half,
        std=half,
        name=name or f"model-{side}",
    )


@pytest.fixture
def plan_of() -> Iterator[Callable[..., Plan]]:
    """Return a function that resolves a request for models in memory with the given input sizes."""

    def plan(sizes: list[int], **values: object) -> Plan:
        models = [model_of(size) for size in sizes]
        with registered(models, named=()) as references:
            resources = Resources(device="cpu", workers=1)
            return resolve(Request(models=tuple(references), attacks=("fgsm",), resources=resources, **values))

    yield plan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(12):
        path = tmp_path / "photos" / ("cat" if number % 2 else "a_dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 50), (20 * number, 90, 200)).save(path)
    return tmp_path / "photos"


@pytest.mark.parametrize("name", IDENTITIES)
def test_the_fingerprints_of_earlier_protocols_are_unchanged(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_command(["show", "protocol", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fingerprint"].startswith(IDENTITIES[name])
    assert not {"eps", "small_eps", "resolution"} & set(PROTOCOLS.load(name).identity)


@pytest.mark.parametrize("name", PROTOCOLS.table)
def test_every_protocol_is_read_from_its_identity(name: str) -> None:
    protocol: Protocol = PROTOCOLS.load(name)
    assert read_protocol(json.loads(json.dumps(protocol.identity))).identity == protocol.identity


def test_own_images_have_a_protocol_with_radii_for_the_size_of_each_model(
    plan_of: Callable[..., Plan], folder: Path
) -> None:
    plan = plan_of([48, 96, 112], images=folder)
    assert plan.protocol is IMAGES and {len(cell) for cell in plan.cells} == {12}
    radii = [(cell.model_name, cell.threat.eps_text) for cell in plan.cells]
    large = [("model-112", eps) for eps in ("1/255", "2/255", "4/255")]
    assert radii == [("model-48", "5/255"), ("model-96", "5/255"), *large]
    assert [cell.image_shape[0] for cell in plan.cells] == [48, 96, 112, 112, 112]
    assert settings(plan) == [
        "protocol images/1, Linf 5/255 for model-48, model-96; Linf 1/255, Linf 2/255, Linf 4/255 for model-112",
        "model-48: attacked at 48 x 48 pixels, its input size",
        "model-96: attacked at 96 x 96 pixels, its input size",
        "model-112: attacked at 112 x 112 pixels, its input size",
    ]


def test_a_track_a_protocol_or_a_radius_replaces_the_protocol_of_own_images(
    plan_of: Callable[..., Plan], folder: Path
) -> None:
    for values in ({"track": "mini"}, {"protocol": "mini-quick"}):
        plan = plan_of([112], images=folder, **values)
        assert (plan.protocol.name, plan.samples) == ("mini-quick", 8)
        assert {cell.threat.eps for cell in plan.cells} == {plan.track.standard_eps}
    plan = plan_of([112], images=folder, eps=("8/255",), samples=4)
    assert [(cell.protocol.label, cell.threat.eps_text) for cell in plan.cells] == [("images-4/1", "8/255")]
    (cell,) = plan_of([112], images=folder, norm="L2", eps=("1/2",)).cells
    assert cell.threat.eps == Fraction(1, 2)
    with pytest.raises(UserError, match=r"the protocol 'images' has no standard eps in L2.*--eps"):
        plan_of([112], images=folder, norm="L2")
    assert plan_of([112], datasets=("shapes",)).protocol.name == "mini-quick"


def test_own_images_beyond_1000_are_a_fixed_balanced_choice() -> None:
    ids = [f"{number:04d}.png" for number in range(1500)]
    labels = [int(number >= 600) for number in range(1500)]
    chosen = IMAGES.select(ids, labels)
    assert len(chosen) == 1000 and sum(labels[index] for index in chosen) == 500
    assert chosen == IMAGES.select(ids, labels) != sorted(chosen)


def test_a_model_in_memory_is_measured_with_the_protocol_of_own_images(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    rows = evaluate(model_of(112), "fgsm", images=folder, prompt="a photo of a {}.", out=out).to_pandas()
    assert list(rows["eps"]) == ["1/255", "2/255", "4/255"] and set(rows["protocol"]) == {"images/1"}
    assert set(rows["n"]) == {12}


def test_the_command_names_protocol_radii_and_size_before_the_run_and_in_the_table(
    make_card: Callable[..., Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "--model", str(make_card()), "--attack", "fgsm", "--images", str(folder)]
    assert run_command([*command, "--out", str(tmp_path / "runs"), "--workers", "1"]) == 0
    output, notes = capsys.readouterr()
    before, _, _ = notes.partition("0 of 12 samples")
    assert "protocol images/1, Linf 5/255\n" in before
    assert "untrained: attacked at 32 x 32 pixels, its input size\n" in before
    assert "protocol images/1, fingerprint" in output and "Linf 5/255" in output


def test_more_images_change_the_cell_and_another_radius_keeps_the_records(
    make_card: Callable[..., Path], folder: Path, tmp_path: Path
) -> None:
    request = Request(
        models=(str(make_card()),),
        attacks=("fgsm",),
        images=folder,
        eps=("1/255",),
        out=tmp_path / "runs",
        resources=Resources(device="cpu", workers=1),
    )
    first = run(request)
    seen: list[int] = []
    wider = run(Request(**{**vars(request), "eps": ("1/255", "2/255")}), on_progress=lambda it: seen.append(it.done))
    assert seen[0] == 12 and wider.tables[0].fingerprint == first.tables[0].fingerprint
    Image.new("RGB", (60, 50), "white").save(folder / "cat" / "new.png")
    assert resolve(request).cells[0].fingerprint != first.tables[0].fingerprints[0]


def test_a_native_protocol_attacks_each_model_at_its_input_size(plan_of: Callable[..., Plan], library: Path) -> None:
    names = ("dtd", "cifar10")
    shapes = {
        protocol: {
            (cell.model_name, cell.dataset.name): cell.image_shape
            for cell in plan_of([48, 240], track="zeroshot15", protocol=protocol, datasets=names, samples=2).cells
        }
        for protocol in ("trusted", "trusted-native")
    }
    assert {shapes["trusted"][model, "dtd"] for model in ("model-48", "model-240")} == {(224, 224)}
    assert shapes["trusted-native"]["model-48", "dtd"] == (48, 48)
    assert shapes["trusted-native"]["model-240", "dtd"] == (240, 240)
    loaded = load_dataset("dtd", "zeroshot15", protocol="trusted-native", samples=2, input_size=48)
    assert loaded.images.shape == (2, 3, 48, 48)
    for found in shapes.values():
        assert {found[model, "cifar10"] for model in ("model-48", "model-240")} == {(32, 32)}
    plan = plan_of([48, 240], track="zeroshot15", datasets=names, samples=2)
    assert settings(plan)[-1] == "model-240: attacked at 224 x 224, 32 x 32 pixels, resized to the input of 240 x 240"


def test_the_resize_is_a_part_of_the_model_and_has_a_gradient() -> None:
    model = model_of(48)
    images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (gradient,) = torch.autograd.grad(model.classifier(("a cat", "some dogs"))(images)[:, 0].sum(), images)
    assert gradient.isfinite().all() and (gradient != 0).float().mean() > 0.99


def test_a_transform_scales_its_crop_with_the_image() -> None:
    assert Transform(224, 224).to_side(336) == Transform(336, 336)
    assert Transform(256, 224, "bilinear").to_side(336) == Transform(384, 336, "bilinear")
    assert Transform(224, None, squash=True).to_side(48) == Transform(48, None, squash=True)
    assert NATIVE.to_side(48) == NATIVE
    with pytest.raises(ValueError, match="resolution must be protocol or native, got 'natvie'"):
        Protocol("mine", 1, 8, resolution="natvie")
    assert fingerprint(Protocol("mine", 1, 8, resolution="native")) != fingerprint(Protocol("mine", 1, 8))
