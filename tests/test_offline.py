"""Tests of the answer without a network: each command is a real process that must end within 5 seconds."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.engine import missing
from robustbench_vlm.models.weights_cache import missing_weights
from robustbench_vlm.tracks import ZEROSHOT15

LIMIT = 5.0
"""Seconds. The number of tries is 3, because other processes may slow down this machine."""
TRIES = 3
MAIN = "from robustbench_vlm.cli.main import main; main()"


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """Yield the address of a host that never answers: its queue of connections is full."""
    with socket.socket() as server, contextlib.ExitStack() as clients:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            client = clients.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield "http://{}:{}".format(*server.getsockname())


@pytest.fixture(params=["refused", "black hole"])
def dead(request: pytest.FixtureRequest) -> Iterator[str]:
    """Yield the address of a proxy that refuses connections, or that never answers."""
    if request.param == "refused":
        yield "http://127.0.0.1:9"
        return
    with black_hole() as address:
        yield address


def answer(folder: Path, proxy: str, *command: str) -> tuple[int, str]:
    """Run vlmbench with an empty cache behind a proxy. Return its exit code and output, if it ends within the limit."""
    variables = {"HTTPS_PROXY": proxy, "HTTP_PROXY": proxy, "https_proxy": proxy, "http_proxy": proxy}
    empty = {"VLMBENCH_CACHE": str(folder), "HF_HOME": str(folder / "hf"), "NO_PROXY": "", "no_proxy": ""}
    unset = {"HF_ENDPOINT", "VLMBENCH_DATA", "HF_HUB_CACHE", "HF_HUB_OFFLINE"}
    environment = {key: value for key, value in os.environ.items() if key not in unset} | empty | variables
    seconds = []
    for _ in range(TRIES):
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", MAIN, *command],
            env=environment, cwd=folder, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        seconds.append(time.monotonic() - began)
        if seconds[-1] < LIMIT:
            return done.returncode, done.stdout + done.stderr
    raise AssertionError(f"vlmbench {' '.join(command)} took {seconds} seconds: {done.stderr}")


@pytest.mark.parametrize("command", ["run", "plan"])
def test_missing_datasets_and_weights_are_listed_with_one_command_each(command: str, dead: str, tmp_path: Path) -> None:
    code, text = answer(tmp_path, dead, command, "--track", "zeroshot15", "--model", "clip", "--model", "fare-1")
    assert code == 2 and "15 of 15 datasets are missing" in text
    fetchable = [name for name in ZEROSHOT15.datasets if name != "imagenet"]
    assert text.count("`vlmbench data prepare ") == text.count("`vlmbench data weights ") == 1
    assert f"`vlmbench data prepare {' '.join(fetchable)}`. Fetch by hand: imagenet" in text
    assert "The weights of 2 models are not in the cache: clip, fare-1" in text
    assert "`vlmbench data weights --track zeroshot15 clip fare-1`" in text


def test_missing_weights_are_listed_if_the_images_are_there(dead: str, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name / "one.png")
    code, text = answer(tmp_path, dead, "run", "--track", "zeroshot15", "--images", "images", "--model", "fare-1")
    assert code == 2 and "The weights of 1 model are not in the cache: fare-1" in text
    assert "This needs a network: cannot reach huggingface.co (" in text and "datasets are missing" not in text


def test_a_host_that_is_down_is_told_once_for_all_datasets(dead: str, tmp_path: Path) -> None:
    code, text = answer(tmp_path, dead, "data", "prepare")
    assert code == 2 and "cannot fetch 14 datasets: cannot reach " in text
    assert text.count("huggingface.co (") == 1 and text.count("`vlmbench data prepare ") == 1
    assert "sun397: `hf download clip-benchmark/wds_sun397 " in text


def test_weights_command_lists_all_missing_weights(dead: str, tmp_path: Path) -> None:
    code, text = answer(tmp_path, dead, "data", "weights", "clip", "fare-1")
    assert code == 2 and "clip, fare-1 (open_clip:ViT-B-32-quickgelu/openai from the Hugging Face hub;" in text
    # The message does not recommend the command that was given.
    assert "Run `vlmbench data weights" not in text


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("open_clip:ViT-B-33/openai", "unknown open_clip architecture 'ViT-B-33'. Did you mean ViT-B-32"),
        ("open_clip:ViT-B-32/opnai", "unknown pretrained tag of ViT-B-32 'opnai'. Did you mean openai"),
        ("open_clip:ViT-B-32/openai", "use open_clip:ViT-B-32-quickgelu/openai"),
    ],
)
def test_wrong_names_of_open_clip_are_found_without_a_network(
    reference: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VLMBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(missing.Hosts, "unreachable", lambda hosts, addresses: {"huggingface.co": "no network"})
    for is_download in (False, True):
        with pytest.raises(UserError, match=re.escape(message)):
            missing.check_hosts("mini", missing_weights(reference, "mini"), is_download=is_download)


def test_data_list_needs_no_network(dead: str, tmp_path: Path) -> None:
    code, text = answer(tmp_path, dead, "data", "list")
    assert code == 0 and "vlmbench data prepare sun397" in text
