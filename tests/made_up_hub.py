"""A made-up Hugging Face hub on the loopback interface, with a small CLIP in the exact format of transformers."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import open_clip
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

COMMIT = "a" * 40
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_clip(folder: Path, seed: int = 0) -> tuple[CLIPModel, Any]:
    """Write a small CLIP at random initialisation with its processor, and return both."""
    config = CLIPConfig(
        text_config={**SMALL, "bos_token_id": 49406, "eos_token_id": 49407},
        vision_config={**SMALL, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(config).eval()
    plain = open_clip.SimpleTokenizer()
    vocabulary = {
        token.replace("<start_of_text>", "<|startoftext|>").replace("<end_of_text>", "<|endoftext|>"): number
        for token, number in plain.encoder.items()
    }
    merges = [pair for pair, _ in sorted(plain.bpe_ranks.items(), key=lambda item: item[1])]
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = CLIPProcessor(images, tokenizer)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


@contextlib.contextmanager
def served(root: Path, *, gated: tuple[str, ...] = ()) -> Iterator[str]:
    """Serve the repositories ORG/NAME below a folder as the hub does, and yield the address."""

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
            if parts[:2] == ["api", "models"] and len(parts) >= 4:
                self._send_listing("/".join(parts[2:4]), with_body)
            elif len(parts) >= 5 and parts[2] == "resolve":
                self._send_file("/".join(parts[:2]), "/".join(parts[4:]), with_body)
            else:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body)

        def _send_listing(self, repository: str, with_body: bool) -> None:
            folder = root / repository
            if not folder.is_dir():
                self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, with_body)
                return
            if "tree" in self.path:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body)
                return
            files = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
            content = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": files, "tags": []}
            self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"}, with_body)

        def _send_file(self, repository: str, name: str, with_body: bool) -> None:
            if repository in gated:
                self._send(401, b"", {"X-Error-Code": "GatedRepo"}, with_body)
                return
            path = root / repository / name
            if not path.is_file():
                code = "EntryNotFound" if path.parent.is_dir() else "RepoNotFound"
                self._send(404, b"", {"X-Error-Code": code, "X-Repo-Commit": COMMIT}, with_body)
                return
            content = path.read_bytes()
            etag = hashlib.sha256(content).hexdigest()
            self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, with_body)

        def _send(self, status: int, content: bytes, headers: dict[str, str], with_body: bool) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_body:
                self.wfile.write(content)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
