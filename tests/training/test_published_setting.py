"""End-to-end tests of training on the real track, with a randomly initialised ViT-B/32 and real images."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from robustbench_vlm.cli.main import run_command
from robustbench_vlm.defenses.agft import AGFT
from robustbench_vlm.models.card import read_card
from robustbench_vlm.models.open_clip import load_architecture
from robustbench_vlm.training.log import read_log
from robustbench_vlm.training.request import TrainingRequest, make_job

IMAGES = Path(__file__).parents[2].parent / "shared" / "data" / "real" / "dtd"
ARCHITECTURE = "open_clip:ViT-B-32-quickgelu"

pytestmark = pytest.mark.skipif(not IMAGES.is_dir(), reason="the real images are not on this machine")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, write_model: Callable[..., Path]) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = load_architecture(ARCHITECTURE).build()
    return write_model(tmp_path_factory.mktemp("base"), "vit", network, ARCHITECTURE)


def test_the_real_track_uses_the_published_settings(base: Path) -> None:
    job = make_job(TrainingRequest("agft", "zeroshot15", images=IMAGES, base=str(base), settings={"batch_size": 64}))
    assert (job.schedule.optimizer, job.schedule.lr, job.schedule.epochs) == ("sgd", 4e-4, 10)
    assert AGFT.schedule.batch_size == 256 and str(job.eps) == "1/255" and len(job.images) == 200
    assert (job.defense.inner.steps, job.defense.inner.step_size) == (2, 1)
    assert job.dataset.prompts[0] == "This is a photo of a banded."


def test_train_writes_a_card_that_run_accepts(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "train", "agft", "--track", "zeroshot15", "--base", str(base), "--images", str(IMAGES), "--eps", "2/255",
        "--set", "batch_size=4", "--set", "steps=2", "--set", "warmup=0", "--device", "cpu", "--out", str(tmp_path),
    ]  # fmt: skip
    assert run_command(arguments) == 0
    card = read_card(tmp_path / "agft.json")
    assert card.architecture == ARCHITECTURE and card.training["eps"] == "2/255" and card.training["steps"] == 2
    assert card.training["track"] == "zeroshot15" and card.training["parent"] == "vit"
    assert [row.step for row in read_log(tmp_path / "log.csv")] == [2]
    (tmp_path / "checkpoint.pt").unlink()
    measure = [
        "run", "--track", "zeroshot15", "--model", str(tmp_path / "agft.json"), "--images", str(IMAGES),
        "--attack", "fgsm", "--samples", "4", "--workers", "1", "--device", "cpu", "--out", str(tmp_path / "runs"),
    ]  # fmt: skip
    assert run_command(measure) == 0
    assert "1/255" in capsys.readouterr().out
    assert len(list((tmp_path / "runs").rglob("*.parquet"))) == 1


def test_missing_images_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["train", "agft", "--track", "zeroshot15"]) == 2
    assert "give one by --images DIR" in capsys.readouterr().err
