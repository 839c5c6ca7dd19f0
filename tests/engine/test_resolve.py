"""Test resolving: names give cells or errors, and fingerprints cover all values that an accuracy depends on."""

import dataclasses
import json
import pickle
import shutil
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from robustbench_vlm.attacks.base import Attack
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import sha256_of
from robustbench_vlm.core.progress import Progress
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.datasets.base import image_sha256
from robustbench_vlm.datasets.image_folder import FolderImages, folder_dataset
from robustbench_vlm.engine import model_cache, probe
from robustbench_vlm.engine import resolve as resolving
from robustbench_vlm.engine.cell import Cell, Samples
from robustbench_vlm.engine.cost import estimate_cost
from robustbench_vlm.engine.request import DEFAULT_PROMPT, Request
from robustbench_vlm.engine.resolve import Plan, resolve
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.models.classifier import Model
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.protocols.mini import MINI_QUICK

MakeCard = Callable[..., Path]
STEPS = replace(MINI_QUICK, name="steps", step_size="1/255")
LOW = replace(MINI_QUICK, name="low", precision="bfloat16")


def plan_of(card: Path, **changes: object) -> Plan:
    request = Request(models=(str(card),), attacks=("fgsm",), datasets=("day-night",))
    return resolve(replace(request, **changes))


def test_a_grid_has_every_combination(make_card: MakeCard) -> None:
    models = (str(make_card("one")), str(make_card("two", seed=1)))
    plan = resolve(
        Request(models=models, attacks=("fgsm", "pgd-10"), eps=("4/255", "8/255"), datasets=("shapes", "day-night"))
    )
    grid = [(cell.model, cell.attack.name, cell.threat.eps_text, cell.dataset.name) for cell in plan.cells]
    assert len(set(grid)) == 16 and plan.samples == 16 * MINI_QUICK.samples
    assert len({cell.fingerprint for cell in plan.cells}) == 16
    assert grid[0] == (models[0], "fgsm", "4/255", "shapes")


def test_defaults_are_those_of_the_track(make_card: MakeCard) -> None:
    plan = resolve(Request(models=(str(make_card()),)))
    assert [cell.dataset.name for cell in plan.cells] == list(plan.track.datasets)
    assert {(cell.attack.name, cell.threat) for cell in plan.cells} == {
        ("autoattack", Threat("Linf", plan.track.standard_eps))
    }
    estimate = estimate_cost(plan)
    assert estimate.passes_expected < estimate.passes_most
    assert 0 < estimate.seconds_expected < estimate.seconds_most


def test_another_number_of_samples_changes_the_protocol_name(make_card: MakeCard) -> None:
    card = make_card()
    (own,), (five,), (many,) = (plan_of(card, samples=samples).cells for samples in (None, 5, "all"))
    assert (len(own), len(five), len(many)) == (MINI_QUICK.samples, 5, 1000)
    assert five.samples.ids == own.samples.ids[:5] == many.samples.ids[:5]
    assert own.protocol.label == "mini-quick/1" and "5" in five.protocol.name and "all" in many.protocol.name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"track": "mimi"}, "unknown track 'mimi'. Did you mean mini?"),
        ({"attacks": ("autoatack",)}, "unknown attack 'autoatack'. Did you mean .*autoattack"),
        ({"attacks": ()}, "no attack is given, but at least one is needed"),
        ({"datasets": ("shape",)}, "unknown dataset 'shape'. Did you mean shapes"),
        ({"protocol": "mini-quik"}, "unknown protocol 'mini-quik'. Did you mean mini-quick"),
        ({"models": ("nonesuch",)}, "unknown model 'nonesuch'"),
        ({"eps": ("8",)}, "eps 8 is larger than 1.*pixel steps.*8/255"),
        ({"eps": ("3/2",)}, "larger than 1 in Linf"),
        ({"norm": "L1"}, "unknown norm 'L1'|no standard eps"),
        ({"norm": "L2"}, "no standard eps in L2.*--eps"),
        ({"norm": "L2", "eps": ("1/2",), "attacks": ("cw",)}, "'cw' is for Linf, not for L2"),
        ({"images": Path("somewhere")}, "give --images or --dataset$"),
        ({"prompt": "a {}"}, "--prompt 'a {}' is given without --images.*leave --prompt out"),
        ({"images": Path("nowhere"), "datasets": ()}, "there is no folder nowhere"),
        ({"resources": Resources(device="cuda")}, "no usable GPU"),
    ],
)
def test_invalid_requests_raise_user_error(make_card: MakeCard, changes: dict[str, object], message: str) -> None:
    if "resources" in changes and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(UserError, match=message):
        plan_of(make_card(), **changes)


def test_two_models_with_the_same_name_raise_user_error(make_card: MakeCard, tmp_path: Path) -> None:
    card = make_card("one")
    shutil.copytree(card.parent, tmp_path / "copy")
    with pytest.raises(UserError, match="both named 'one'"):
        plan_of(card, models=(str(card), str(tmp_path / "copy" / "one.json")))


def change_weights(
    card: Path, write: Callable[[Path, dict[str, torch.Tensor]], object], *, digest: bool = True
) -> None:
    """Rewrite the image weights of a card, and also their digest in the card if `digest` is true."""
    values = json.loads(card.read_text())
    path = card.parent / values["image"]["file"]
    write(path, load_file(path))
    if digest:
        values["image"]["sha256"] = sha256_of(path)
        card.write_text(json.dumps(values))


def with_nan(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    first = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[first] = torch.full_like(tensors[first], float("nan"))
    save_file(tensors, path)


class Code:
    """An object whose pickle would run code when it is loaded."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return Path.touch, (Path("ran-code"),)  # type: ignore[return-value]


def test_changed_or_invalid_weights_raise_user_error(
    make_card: MakeCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = make_card("changed")
    change_weights(card, lambda path, tensors: path.write_bytes(path.read_bytes()[:-1]), digest=False)
    with pytest.raises(UserError, match="their card states"):
        plan_of(card)
    card = make_card("nan")
    change_weights(card, with_nan)
    with pytest.raises(UserError, match="NaN"):
        plan_of(card)
    monkeypatch.chdir(tmp_path)
    card = make_card("code")
    change_weights(card, lambda path, tensors: path.with_suffix(".pt").write_bytes(pickle.dumps(Code())))
    values = json.loads(card.read_text())
    file = card.parent / "code-image.pt"
    values["image"] = {"file": file.name, "sha256": sha256_of(file)}
    card.write_text(json.dumps(values))
    with pytest.raises(UserError, match="may contain code, so none of it was run"):
        plan_of(card)
    assert not Path("ran-code").exists()


def image_folder(folder: Path, *, broken: bool = True) -> Path:
    """Write a folder of two classes with three images each. If `broken` is true, one image is truncated."""
    for n in range(6):
        path = folder / ("night" if n % 2 else "day") / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (40 * n, 10, 200 - 30 * n)).save(path)
    if broken:
        path = folder / "day" / "4.png"
        path.write_bytes(path.read_bytes()[:60])
    return folder


def test_unreadable_images_raise_user_error_or_are_counted(make_card: MakeCard, tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images")
    with pytest.raises(UserError, match=r"day/4\.png.*repair or remove the file$"):
        plan_of(make_card(), images=folder, datasets=())
    (cell,) = plan_of(make_card(), images=folder, datasets=(), skip_unreadable=True).cells
    assert cell.samples.unreadable == ("day/4.png",)
    assert len(cell) == 5 and "day/4.png" not in cell.samples.ids
    assert cell.dataset.classes == ("day", "night")


def test_images_of_a_folder_are_decoded_once_with_progress(
    make_card: MakeCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, told, decoded = image_folder(tmp_path / "pictures", broken=False), list[Progress](), list[str]()
    read = FolderImages.image
    monkeypatch.setattr(FolderImages, "image", lambda self, index: decoded.append(self.ids[index]) or read(self, index))
    request = Request(models=(str(make_card()),), attacks=("fgsm",), images=folder, eps=("1/255", "2/255"), samples=4)
    first = resolve(request, told.append)
    assert sorted(decoded) == sorted(first.cells[0].dataset.open().ids) and len(decoded) == 6
    assert any(each.label == "preparing pictures" and each.done == each.total == 6 for each in told)
    cell, other = resolve(request).cells
    images = cell.dataset.open().read(cell.samples.indices)
    assert torch.equal(images, other.dataset.open().read(other.samples.indices)) and len(decoded) == 6
    assert [image_sha256(image) for image in images] == list(cell.samples.image_digests)
    unprepared = folder_dataset(folder, DEFAULT_PROMPT, 32).open()
    assert torch.equal(images, unprepared.read([unprepared.ids.index(name) for name in cell.samples.ids]))
    # A changed image is prepared again, and the pixels of the earlier plan stay as they were.
    del decoded[:]
    Image.new("RGB", (40, 30), "white").save(folder / "day" / "0.png")
    assert resolve(request).cells[0].samples.digest != cell.samples.digest and len(decoded) == 6
    assert torch.equal(images, cell.dataset.open().read(cell.samples.indices))


def test_the_fingerprint_changes_with_every_value_that_the_accuracy_depends_on(make_cell: Callable[..., Cell]) -> None:
    cell = make_cell(6)
    stage = cell.attack.stages[0]
    stages = (replace(stage, parameters={**stage.parameters, "steps": 4}), cell.attack.stages[1])
    samples = cell.samples
    changes: list[dict[str, object]] = [
        {"weights": "1" * 64},
        {"attack": replace(cell.attack, stages=stages)},
        {"attack": replace(cell.attack, stages=cell.attack.stages[::-1])},
        {"threat": Threat("Linf", Fraction(7, 255))},
        {"threat": Threat("L2", Fraction(8, 255))},
        {"protocol": replace(cell.protocol, seed=1)},
        {"protocol": replace(cell.protocol, version=2)},
        {"dataset": replace(cell.dataset, classes=("a", "b", "d"))},
        {"dataset": replace(cell.dataset, prompt="the sign {}.")},
        {"dataset": replace(cell.dataset, name="signs")},
        {"samples": replace(samples, labels=(*samples.labels[:-1], 0))},
        {"samples": replace(samples, image_digests=(*samples.image_digests[:-1], "f" * 64))},
        {"samples": Samples(*(values[:-1] for values in dataclasses.astuple(samples)))},
    ]
    prints = [cell.fingerprint, *(replace(cell, **change).fingerprint for change in changes)]
    assert len(set(prints)) == len(prints)


def test_the_fingerprint_does_not_change_with_names_and_descriptions(make_cell: Callable[..., Cell]) -> None:
    cell = make_cell(6)
    changes: list[dict[str, object]] = [
        {"model": "elsewhere.json"},
        {"model_name": "other"},
        {"track": "other"},
        {"attack": Attack(cell.attack.name, cell.attack.stages, "another description")},
        {"protocol": replace(cell.protocol, description="another description")},
        {"dataset": replace(cell.dataset, description="another description", options={"path": "elsewhere"})},
    ]
    assert {replace(cell, **change).fingerprint for change in changes} == {cell.fingerprint}


def test_the_estimate_has_the_cost_of_each_cell(make_card: MakeCard) -> None:
    found = plan_of(make_card(), attacks=("fgsm", "pgd-10"), datasets=("shapes", "day-night"), samples=4)
    estimate = estimate_cost(found)
    costs = estimate.cells
    assert len(costs) == len(found.cells) == 4
    assert sum(cost.passes_most for cost in costs) == estimate.passes_most
    assert sum(cost.seconds_expected for cost in costs) == pytest.approx(estimate.seconds_expected)
    assert all(0 < cost.passes_expected < cost.passes_most and cost.memory > 2**28 for cost in costs)
    # PGD-10 computes ten gradients, FGSM computes one.
    assert costs[2].passes_most > 2 * costs[0].passes_most and costs[2].seconds_most > 2 * costs[0].seconds_most


def test_an_estimate_embeds_the_prompts_of_only_one_dataset(
    make_card: MakeCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded: list[int] = []
    text_features = Model.text_features

    def spied(model: Model, prompts: Sequence[str | tuple[str, ...]]) -> torch.Tensor:
        embedded.append(len(prompts))
        return text_features(model, prompts)

    monkeypatch.setattr(Model, "text_features", spied)
    plan = plan_of(make_card(), datasets=("day-night", "shapes", "colours"))
    if plan.request.resources.device == "cpu":
        assert not embedded, "resolving a request on a CPU must not embed prompts"
    estimate_cost(plan)
    assert sorted(embedded) == [1, len(plan.cells[0].dataset.classes)]


def test_resolve_measures_no_speed_and_has_one_model_in_memory(
    make_card: MakeCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[torch.nn.Module]] = []
    alive: list[int] = []
    load = model_cache.load_model

    def spied(reference: str, track: str) -> Model:
        alive.append(sum(network() is not None for network in loaded))
        model = load(reference, track)
        loaded.append(weakref.ref(model.network))
        return model

    monkeypatch.setattr(model_cache, "load_model", spied)
    monkeypatch.setattr(probe, "measure_speed", None)
    cards = [str(make_card(name, seed=seed)) for seed, name in enumerate(("one", "two", "three"))]
    plan = make_request(cards)
    assert alive == [0, 0, 0] and len({cell.weights for cell in plan.cells}) == 3
    monkeypatch.undo()
    monkeypatch.setattr(model_cache, "load_model", spied)
    estimate_cost(plan)
    assert alive[3:] == [0, 0, 0]


def make_request(cards: Sequence[str]) -> Plan:
    return resolve(Request(models=tuple(cards), attacks=("fgsm",), datasets=("day-night",), samples=4))


def test_the_batch_size_on_a_gpu_is_chosen_without_a_measurement_of_speed(
    make_card: MakeCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int, int]] = []

    def choose(device: str, sample_bytes: int, workers: int) -> int:
        asked.append((device, sample_bytes, workers))
        return 16

    monkeypatch.setattr(resolving, "choose_batch_size", choose)
    monkeypatch.setattr(probe, "measure_speed", None)
    cells = plan_of(make_card(), samples=4).cells
    monkeypatch.setattr(resolving, "_sample_memory", lambda cell, device: 10**6)
    assert resolving._batch_size(cells, Resources(device="cuda", workers=2)) == 16
    assert asked == [("cuda", 10**6, 2)]
    monkeypatch.undo()
    image = 3 * 32 * 32 * 4
    assert resolving._sample_memory(cells[0], "cpu") > 24 * image


def test_the_estimate_includes_the_passes_of_a_judge_in_another_precision(
    make_card: MakeCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROTOCOLS.table, "low", f"{__name__}:LOW")  # type: ignore[arg-type]
    exact, low = (estimate_cost(plan_of(make_card(), protocol=name)).passes_most for name in ("mini-quick", "low"))
    # FGSM makes at most three calls, and the judge classifies the images of each.
    assert low - exact == 3 * MINI_QUICK.samples


def test_the_step_size_of_a_protocol_applies_only_to_linf(make_card: MakeCard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROTOCOLS.table, "steps", f"{__name__}:STEPS")  # type: ignore[arg-type]
    for norm, given in (("Linf", True), ("L2", False)):
        (cell,) = plan_of(make_card(), attacks=("pgd-10",), protocol="steps", norm=norm, eps=("1/2",)).cells
        assert ("step_size" in cell.attack.stages[0].parameters) is given
