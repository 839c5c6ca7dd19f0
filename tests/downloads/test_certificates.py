"""Certificates of https servers: the variables that name them, refusals, and proxies."""

import http.server
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_server import DIGEST, Handler, whole

from robustbench_vlm.core.download import download
from robustbench_vlm.core.errors import UserError

VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a certificate for 127.0.0.1. Its key is next to it."""
    folder = tmp_path_factory.mktemp("certificate")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    return folder / "certificate.pem"


@pytest.fixture
def https(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the address of a file on an https server whose certificate the system does not trust."""
    for variable in (*VARIABLES, "SSL_CERT_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Given", (Handler,), {"replies": [whole], "asked": []})
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *arguments: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"https://127.0.0.1:{server.server_port}/file.bin"
    server.shutdown()
    server.server_close()


def test_an_unknown_certificate_is_refused_and_the_message_names_the_variable(https: str, path: Path) -> None:
    with pytest.raises(UserError, match=r"invalid certificate.*company's proxy.*set SSL_CERT_FILE") as error:
        download(https, path)
    assert "verif" not in str(error.value).partition("(")[0] and not path.exists()


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_certificate_is_read_from_each_variable(
    variable: str, https: str, certificate: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, str(certificate))
    assert download(https, path) == DIGEST


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_variable_without_readable_certificates_is_named(
    variable: str, https: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty.pem").write_text("")
    for value in (tmp_path / "missing.pem", tmp_path / "empty.pem"):
        monkeypatch.setenv(variable, str(value))
        with pytest.raises(UserError, match=f"{variable} is .*certificates in PEM format, or unset it"):
            download(https, path)


def test_a_certificate_for_another_host_is_refused(
    https: str, certificate: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with pytest.raises(UserError, match="invalid certificate"):
        download(https.replace("127.0.0.1", "localhost"), path)


def test_https_requests_use_the_proxy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Proxy(Handler):
        def do_CONNECT(self) -> None:
            asked.append(self.path)
            self.send_error(403)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("robustbench_vlm.core.download.WAITS", (0.0,))
    with pytest.raises(UserError, match="403"):
        download("https://example.com/file.bin", path)
    server.shutdown()
    server.server_close()
    assert asked == ["example.com:443"]
