"""Released weights are downloaded once, and their digest is recorded and checked whenever they are loaded."""

import functools
import json
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import open_clip
import pytest
import torch
from torch import Tensor, nn

from robustbench_vlm.cli.main import run_command
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.models.card import read_card
from robustbench_vlm.models.classifier import load_model
from robustbench_vlm.models.open_clip import load_architecture
from robustbench_vlm.models.weights import cached


class Counting(SimpleHTTPRequestHandler):
    """A request handler that serves a folder and records the requested paths."""

    asked: list[str]

    def log_request(self, code: object = "-", size: object = "-") -> None:
        self.asked.append(self.path)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class Site:
    """A server on the loopback address that serves a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        handler = type("Given", (Counting,), {"asked": []})
        self.asked: list[str] = handler.asked  # type: ignore[attr-defined]
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def put(self, path: str, seed: int) -> dict[str, Tensor]:
        """Write a checkpoint in TeCoA's format to the server's folder and return its image encoder."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            tower = dict(load_architecture("mini").build().get_submodule("visual").state_dict())
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        torch.save({"epoch": 9, "vision_encoder_state_dict": tower}, self.folder / path)
        return tower


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("VLMBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "site").mkdir()
    found = Site(tmp_path / "site")
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def card(tmp_path: Path) -> Callable[..., Path]:
    def write(**image: str) -> Path:
        values = {"name": "tecoa", "architecture": "mini", "base": "clip"}
        path = tmp_path / "tecoa.json"
        path.write_text(json.dumps({**values, "image": {"file": "tecoa.pth.tar", "sha256": "", **image}}))
        return path

    return write


def _visual(path: Path) -> dict[str, Tensor]:
    return dict(load_model(str(path), "mini").network.get_submodule("visual").state_dict())


def _equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[key], two[key]) for key in one | two)


def test_weights_are_downloaded_once_and_combined_with_the_base(site: Site, card: Callable[..., Path]) -> None:
    tower = site.put("a.pth.tar", seed=1)
    path = card(url=f"{site.url}/a.pth.tar", layout="vision_encoder_state_dict")
    assert _equal(_visual(path), tower) and _equal(_visual(path), tower)
    assert site.asked == ["/a.pth.tar"]
    model, base = load_model(str(path), "mini"), load_model("clip", "mini")
    assert torch.equal(model.text_features(["a cat"]), base.text_features(["a cat"]))
    assert model.scale == base.scale and model.digest != base.digest


def test_a_run_shows_download_progress(
    site: Site, card: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.put("a.pth.tar", seed=1)
    path = card(url=f"{site.url}/a.pth.tar")
    plan = ["plan", "--model", str(path), "--dataset", "handwritten", "--samples", "2", "--attack", "fgsm"]
    for said in (True, False):
        assert run_command(plan) == 0
        assert ("MB of tecoa.pth.tar" in capsys.readouterr().err) == said
    assert site.asked == ["/a.pth.tar"]


def test_weights_are_downloaded_from_the_hub(
    site: Site, card: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", site.url)
    tower = site.put("owner/name/resolve/main/sub/a.pt", seed=1)
    assert _equal(_visual(card(url="hf:owner/name/sub/a.pt")), tower)


def test_a_changed_download_is_refused(site: Site, card: Callable[..., Path]) -> None:
    site.put("a.pth.tar", seed=1)
    path = card(url=f"{site.url}/a.pth.tar")
    load_model(str(path), "mini")
    image = read_card(path).image
    assert image
    here = cached(image)
    # The file in the cache is changed.
    before = here.read_bytes()
    here.write_bytes(before + b" ")
    with pytest.raises(UserError, match=r"had .* when they were first downloaded.*delete .*tecoa.pth.tar.sha256"):
        load_model(str(path), "mini")
    # The file in the cache is deleted, and the file on the server has changed.
    here.unlink()
    site.put("a.pth.tar", seed=2)
    with pytest.raises(UserError, match="the file on the server has changed"):
        load_model(str(path), "mini")
    assert not here.exists()


def test_the_digest_in_the_card_is_checked_on_the_first_download(site: Site, card: Callable[..., Path]) -> None:
    site.put("a.pth.tar", seed=1)
    with pytest.raises(UserError, match=f"expected {'0' * 64}"):
        load_model(str(card(url=f"{site.url}/a.pth.tar", sha256="0" * 64)), "mini")


def test_a_format_other_than_the_one_in_the_card_is_refused(site: Site, card: Callable[..., Path]) -> None:
    site.put("a.pth.tar", seed=1)
    with pytest.raises(
        UserError, match="format is 'vision_encoder_state_dict', but the card states 'partial_state_dict'"
    ):
        load_model(str(card(url=f"{site.url}/a.pth.tar", layout="partial_state_dict")), "mini")


def test_cards_with_the_same_address_share_one_download(site: Site, card: Callable[..., Path]) -> None:
    first, second = (site.put(f"{name}/tecoa.pth.tar", seed) for name, seed in (("a", 1), ("b", 2)))
    path = card(url=f"{site.url}/a/tecoa.pth.tar")
    plain_digest = load_model(str(path), "mini").digest
    path.write_text(json.dumps({**json.loads(path.read_text()), "mean": [0.4, 0.4, 0.4], "std": [0.2, 0.2, 0.2]}))
    own = load_model(str(path), "mini")
    assert own.digest != plain_digest and torch.allclose(own.encoder.mean.flatten(), torch.tensor(0.4))
    assert site.asked == ["/a/tecoa.pth.tar"]
    assert not _equal(first, second) and _equal(_visual(card(url=f"{site.url}/b/tecoa.pth.tar")), second)


def test_the_message_for_a_file_with_a_web_page_says_where_to_save_it(site: Site, card: Callable[..., Path]) -> None:
    path = card(page="https://example.com/folder")
    with pytest.raises(UserError, match=r"open https://example.com/folder .*save the file as .*vlmbench convert"):
        load_model(str(path), "mini")
    tower = site.put("a.pth.tar", seed=1)
    image = read_card(path).image
    assert image
    cached(image).parent.mkdir(parents=True)
    cached(image).write_bytes((site.folder / "a.pth.tar").read_bytes())
    assert _equal(_visual(path), tower) and not site.asked


def test_a_file_name_outside_the_cache_is_refused(site: Site, card: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="is outside the folder"):
        load_model(str(card(url=f"{site.url}/a", file="../../a.pt")), "mini")


def test_a_base_of_another_track_or_with_a_base_is_refused(site: Site, card: Callable[..., Path]) -> None:
    path = card(url=f"{site.url}/a")
    with pytest.raises(UserError, match="on the track 'zeroshot15' has open_clip:ViT-B-32-quickgelu: give the track"):
        load_model(str(path), "zeroshot15")
    path.write_text(json.dumps({**json.loads(path.read_text()), "base": path.name}))
    with pytest.raises(UserError, match=r"also has a base"):
        load_model(str(path), "mini")
    assert not site.asked


def test_the_digest_of_open_clip_weights_is_recorded(
    resnet: nn.Module, site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(open_clip, "create_model", lambda name, pretrained: resnet)
    named, card = load_model("open_clip:RN50-quickgelu/openai", "mini"), load_model("clip-rn50", "zeroshot15")
    assert named.digest == card.digest and card.card and card.card.pretrained == "openai"
    assert named.name == "open_clip:RN50-quickgelu/openai" and card.name == "clip-rn50"
    with torch.no_grad():
        resnet.get_parameter("logit_scale").add_(1)
    with pytest.raises(UserError, match=r"weights open_clip:RN50-quickgelu/openai have .* first downloaded"):
        load_model("clip-rn50", "zeroshot15")
    with torch.no_grad():
        resnet.get_parameter("logit_scale").sub_(1)
