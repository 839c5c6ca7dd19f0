"""Attestations as in-toto statements: write them, read them, and describe the machine that made them.

An attestation is the result of one verification. Its statement names the digests of the results that were verified, so
other users can collect statements and add them to the history of the entry
(https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md).
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import cache_folder, read_text, write_text
from robustbench_vlm.core.fingerprint import canonical, plain
from robustbench_vlm.core.strict_json import STRICT, read_json, validate
from robustbench_vlm.engine.manifest import machine, versions
from robustbench_vlm.leaderboard.history import Attestation, Digest, Event, Name, Subject

_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE = "urn:robustbench-vlm:verification:v1"
_MAX_BYTES = 2**20
_ADVICE = "give a file that `vlmbench verify --attestation FILE` wrote"


@dataclass(frozen=True)
class _Resource:
    """A named part of the results with its digest."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    name: Name
    digest: Mapping[Literal["sha256"], Digest]


@dataclass(frozen=True)
class _Statement:
    """The fields of a statement. The field names are those of in-toto, so `_type` has an alias."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    subject: tuple[_Resource, ...]
    predicateType: Literal["urn:robustbench-vlm:verification:v1"]
    predicate: Attestation
    type_: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")]


def statement(subject: Subject, attestation: Attestation) -> dict[str, Any]:
    """Return the in-toto statement of an attestation as JSON values."""
    return {
        "_type": _TYPE,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in vars(subject).items()],
        "predicateType": _PREDICATE,
        "predicate": plain(attestation),
    }


def statement_bytes(event: Event) -> bytes:
    """Return the bytes that a signature covers: the canonical JSON of the statement of an event."""
    assert event.attestation is not None, "the event has an attestation"
    return canonical(statement(event.subject, event.attestation)).encode()


def write_statement(event: Event, path: Path) -> None:
    """Write the statement of an event to a file. If the event is signed, also write the signature to FILE.sig."""
    write_text(path, statement_bytes(event).decode())
    if event.signature:
        write_text(signature_path(path), event.signature)


def signature_path(path: Path) -> Path:
    """Return the path of the signature of a statement file."""
    return path.with_name(f"{path.name}.sig")


def read_statement(path: Path) -> tuple[Subject, Attestation, str]:
    """Read a statement file. Return the digests, the attestation, and the signature in FILE.sig or "".

    Raises UserError if the file is not such a statement.
    """
    values = read_json(path, "the attestation", max_bytes=_MAX_BYTES, advice=_ADVICE)
    found = validate(_Statement, values, f"the attestation {path}", advice=_ADVICE)
    digests = {each.name: each.digest.get("sha256", "") for each in found.subject}
    subject = validate(Subject, digests, f"the attestation {path}: subject", advice=_ADVICE)
    if path.stat().st_size != len(canonical(values)):
        raise UserError(f"the attestation {path} is not in its standard form, so a signature cannot match: {_ADVICE}")
    signed = signature_path(path)
    return subject, found.predicate, read_text(signed, _ADVICE) if signed.is_file() else ""


def machine_id() -> str:
    """Return a random identifier of this machine, 32 hexadecimal digits. It is stored in the cache folder.

    It says nothing about the machine. It only shows that two attestations are from different machines.
    """
    path = cache_folder() / "machine"
    known = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    if len(known) != 32 or set(known) - set("0123456789abcdef"):
        known = secrets.token_hex(16)
        write_text(path, known)
    return known


def environment(device: str) -> dict[str, Any]:
    """Return the versions of packages and the description of this machine."""
    return {"versions": versions(), "machine": machine(device)}


def is_equal_machine(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Return whether a run's environment computes the same bits as the environment `here`.

    Both have the keys "versions" and "machine". The processor model, its instruction set and torch must be equal. On
    GPUs, equal bits are not guaranteed. Environments of older versions do not name the processor.
    """
    first, second = recorded.get("machine", {}), here["machine"]
    known = isinstance(first, Mapping) and first.get("processor")
    torch = recorded.get("versions", {}).get("torch")
    return bool(known and known == second["processor"] and torch and torch == here["versions"]["torch"])
