"""SSH signatures of attestations, made and checked with ssh-keygen where it is installed.

Signatures are optional. A signature shows who made an attestation. The trusted keys are in the file
leaderboards/allowed_signers of the installed package, in the format of OpenSSH.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import package_folder, write_text
from robustbench_vlm.engine.cell_records import Unsound

_NAMESPACE = "robustbench_vlm"
"""The namespace of the signatures. A signature for another purpose is therefore not accepted."""
_TIMEOUT = 20
"""Largest time of one call of ssh-keygen, in seconds."""


def is_available() -> bool:
    """Return whether ssh-keygen is installed."""
    return shutil.which("ssh-keygen") is not None


def sign(content: bytes, key: Path) -> str:
    """Return the SSH signature of `content` with a private key file, or with the agent's key of a public key file.

    Raises UserError if ssh-keygen is not installed or cannot use the key.
    """
    if not is_available():
        raise UserError("ssh-keygen is not installed, so the attestation cannot be signed: install OpenSSH")
    if not key.is_file():
        raise UserError(f"the key {key} does not exist: give the path of an SSH key, such as ~/.ssh/id_ed25519")
    found = _call(["-Y", "sign", "-n", _NAMESPACE, "-f", str(key)], content)
    if found.returncode:
        raise UserError(f"ssh-keygen cannot sign with {key}: {_reason(found)}; give a key that ssh-add -l lists")
    return found.stdout.decode()


def check_signature(content: bytes, signature: str) -> None:
    """Raise Unsound if an SSH signature does not fit `content`. Do nothing if ssh-keygen is not installed."""
    if not is_available():
        return
    with _file(signature) as path:
        found = _call(["-Y", "check-novalidate", "-n", _NAMESPACE, "-s", path], content)
    if found.returncode:
        raise Unsound(
            f"a signature in the history does not fit its attestation ({_reason(found)}): restore the signature"
        )


def trusted_signer(content: bytes, signature: str, allowed: Path | None = None) -> str:
    """Return the name of the trusted signer of `content`, or "" if the signature is not of a trusted key.

    `allowed` is a file of trusted keys. By default, it is the file in the installed package.
    """
    allowed = allowed or package_folder("leaderboards") / "allowed_signers"
    if not (signature and allowed.is_file() and is_available()):
        return ""
    with _file(signature) as path:
        names = _call(["-Y", "find-principals", "-s", path, "-f", str(allowed)], b"")
        name = names.stdout.decode().split("\n")[0].split(",")[0]
        if names.returncode or not name:
            return ""
        found = _call(["-Y", "verify", "-n", _NAMESPACE, "-f", str(allowed), "-I", name, "-s", path], content)
    return "" if found.returncode else name


@contextmanager
def _file(signature: str) -> Iterator[str]:
    """Write a signature to a temporary file and yield its path."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "signature"
        write_text(path, signature)
        yield str(path)


def _call(arguments: list[str], content: bytes) -> "subprocess.CompletedProcess[bytes]":
    try:
        return subprocess.run(["ssh-keygen", *arguments], input=content, capture_output=True, timeout=_TIMEOUT)
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"ssh-keygen failed: {error}; check that it works on this machine") from error


def _reason(found: "subprocess.CompletedProcess[bytes]") -> str:
    return (found.stderr or found.stdout).decode(errors="replace").strip().split("\n")[-1][:200]
