"""Fixtures for the tests in several folders."""

import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from made_up_sets import make
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from robustbench_vlm.core.files import sha256_of
from robustbench_vlm.datasets.mini import COLOURS
from robustbench_vlm.datasets.published import PUBLISHED
from robustbench_vlm.engine import cost
from robustbench_vlm.models.card import ModelCard, Weights, write_card
from robustbench_vlm.models.classifier import load_model
from robustbench_vlm.models.image_encoder import ImageEncoder
from robustbench_vlm.models.open_clip import load_architecture

# The same examples in every run, without a time limit, because the machine may be busy.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")

# The speed of a model is measured with few passes, because no test depends on its precision.
cost._TIMING_SECONDS = 0.0

TESTS = Path(__file__).parent
LONG_FILES = (
    "docs/test_page_commands.py",
    "attacks/test_reference.py",
    "models/test_in_memory.py",
    "test_real_track.py",
    "engine/test_cluster.py",
    "engine/test_kill.py",
    "leaderboard/test_workflow.py",
    "attacks/test_against_official_code.py",
    "docs/test_pages.py",
    "training/test_code_variants.py",
    "training/test_commands.py",
    "training/test_finetune.py",
    "test_undefended.py",
    "attacks/test_batching.py",
    "analysis/test_attack_classifier.py",
)
"""Files whose tests take longest. They run first, because a long file at the end leaves the other processes idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the long files first. Raise UsageError if one of these files does not exist."""
    places = {TESTS / name: place for place, name in enumerate(LONG_FILES)}
    if missing := [str(path) for path in places if not path.is_file()]:
        raise pytest.UsageError(f"LONG_FILES of tests/conftest.py names {missing[0]}, which does not exist")
    items.sort(key=lambda item: places.get(item.path, len(places)))


SLOW_IMPORTS = ("torch", "open_clip", "transformers", "scipy.stats", "matplotlib.pyplot", "sklearn")
_frozen: set[str] = set()


@pytest.fixture(autouse=True)
def quick_collections() -> Iterator[None]:
    """Leave the objects of imported packages out of later garbage collections. Every run makes such collections."""
    yield
    if not sys.modules.keys() & SLOW_IMPORTS <= _frozen:
        gc.collect()
        gc.freeze()
        _frozen.update(sys.modules.keys() & SLOW_IMPORTS)


@pytest.fixture(autouse=True)
def own_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make tests independent of the user's cache and of the width of the user's terminal."""
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("VLMBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    # Many tests use servers on this machine.
    monkeypatch.setenv("VLMBENCH_ALLOWED_HOSTS", "127.0.0.1,localhost")


def write_untrained(folder: Path, name: str = "untrained", seed: int = 0) -> Path:
    """Write a small CLIP with random weights and return the path of its card."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return write_network(folder, name, load_architecture("mini").build())


def write_network(folder: Path, name: str, network: nn.Module, architecture: str = "mini") -> Path:
    """Write a network as two weights files and a card, and return the path of the card."""
    folder.mkdir(parents=True, exist_ok=True)
    state = network.state_dict()
    image = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    text = {key: value for key, value in state.items() if not key.startswith("visual.")}
    files = {}
    for part, tensors in (("image", image), ("text", text)):
        path = folder / f"{name}-{part}.safetensors"
        save_file({key: value.contiguous() for key, value in tensors.items()}, path)
        files[part] = Weights(path.name, sha256_of(path))
    write_card(ModelCard(name=name, architecture=architecture, **files), folder / f"{name}.json")
    return folder / f"{name}.json"


@pytest.fixture
def make_card(tmp_path: Path) -> Callable[..., Path]:
    """Return a function (name, seed) that writes a model with random weights and returns the path of its card."""
    return lambda name="untrained", seed=0: write_untrained(tmp_path / "cards", name, seed)


@pytest.fixture(scope="session")
def _library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("library")
    for name in PUBLISHED:
        make(name, root / "data")
    return root


@pytest.fixture
def library(_library: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set VLMBENCH_DATA to a folder with a small made-up copy of every published dataset, and return the folder."""
    monkeypatch.setenv("VLMBENCH_DATA", str(_library / "data"))
    monkeypatch.setenv("VLMBENCH_CACHE", str(_library / "cache"))
    return _library / "data"


@pytest.fixture(scope="session")
def write_model() -> Callable[..., Path]:
    """Return the function (folder, name, network, architecture) that writes a model and returns its card's path."""
    return write_network


@pytest.fixture(scope="session")
def taught_card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the card of a small CLIP trained for seconds on colours: accurate on clean images, without a defense."""
    folder = tmp_path_factory.mktemp("taught")
    model = load_model(str(write_untrained(folder, "taught")), "mini")
    source, features = COLOURS.open(), model.text_features(COLOURS.prompts)
    pictures, labels = source.read(range(512)).float() / 255, torch.tensor(source.labels[:512])
    encoder = ImageEncoder(model.network.get_submodule("visual"), model.architecture).train()
    for parameter in encoder.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=2e-3)
    for step in range(60):
        rows = torch.arange(64) + 64 * (step % 8)
        scores = 20 * functional.normalize(encoder(pictures[rows]), dim=-1) @ features.T
        optimizer.zero_grad()
        functional.cross_entropy(scores, labels[rows]).backward()
        optimizer.step()
    return write_network(folder, "taught", model.network)
