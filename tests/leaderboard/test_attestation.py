"""Attestations of other machines: statements are collected, and signatures are made and checked with ssh-keygen."""

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from made_up_results import attested, evidence, write_board_entry

from robustbench_vlm.cli.main import run_command
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.engine.cell_records import Unsound
from robustbench_vlm.leaderboard import signature
from robustbench_vlm.leaderboard.attestation import (
    environment,
    is_equal_machine,
    machine_id,
    read_statement,
    statement_bytes,
    write_statement,
)
from robustbench_vlm.leaderboard.entry import Entry, read_entry, write_entry
from robustbench_vlm.leaderboard.signature import sign, trusted_signer
from robustbench_vlm.leaderboard.validate import check_continuation, check_entry, check_history


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of an entry that one machine has reproduced."""
    return write_board_entry([evidence("a", ["", "square"])], tmp_path / "mini", "reproduced")


def _add(path: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = run_command(["verify", str(path), "--add", str(file)])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def test_the_attestation_of_a_second_machine_raises_the_status(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry, file = read_entry(path), tmp_path / "other.json"
    other = attested(entry, machine="2" * 32).history[-1]
    write_statement(other, file)
    statement = json.loads(file.read_text())
    assert statement["_type"] == "https://in-toto.io/Statement/v1" and statement["predicate"]["bound"] == 0.01
    assert {each["name"]: each["digest"]["sha256"] for each in statement["subject"]} == vars(entry.subject)
    assert read_statement(file) == (entry.subject, other.attestation, "")
    assert _add(path, file, capsys) == (0, f"added the attestation to {path}; status: verified\n")
    after = read_entry(path)
    check_entry(after, path.parent)
    assert after.history[:-1] == entry.history and after.history[-1].attestation == other.attestation
    code, message = _add(path, file, capsys)
    assert code == 2 and "already has the attestation" in message


def test_an_attestation_of_other_results_is_refused(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry, file = read_entry(path), tmp_path / "other.json"
    changed = dataclasses.replace(entry, weights="0" * 64)
    write_statement(attested(changed).history[-1], file)
    code, message = _add(path, file, capsys)
    assert code == 2 and "attests other weights than those of" in message
    for text in ("{}", "[]", file.read_text().replace('"is_full":false', '"is_full":1'), "x" * 2_000_000):
        file.write_text(text)
        code, message = _add(path, file, capsys)
        assert code == 2 and "the attestation" in message
    assert read_entry(path) == entry


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a private SSH key."""
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")
    path = tmp_path_factory.mktemp("keys") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def _signed(entry: Entry, key: Path) -> Entry:
    last = entry.history[-1]
    signed = dataclasses.replace(last, signature=sign(statement_bytes(last), key))
    return dataclasses.replace(entry, history=(*entry.history[:-1], signed))


def test_a_signed_attestation_of_a_trusted_key_may_be_submitted(path: Path, key: Path, tmp_path: Path) -> None:
    earlier = read_entry(path)
    allowed = tmp_path / "allowed_signers"
    public = key.with_suffix(".pub").read_text()
    # This is the line in docs/submit.md.
    allowed.write_text(f'verifier@example.org namespaces="robustbench_vlm" {public}')
    entry = _signed(attested(earlier, machine="2" * 32), key)
    check_history(entry)
    check_continuation(entry, earlier, path.parent, allowed=allowed)
    assert trusted_signer(statement_bytes(entry.history[-1]), entry.history[-1].signature, allowed)
    allowed.write_text(f'verifier@example.org namespaces="git" {public}')
    assert trusted_signer(statement_bytes(entry.history[-1]), entry.history[-1].signature, allowed) == ""
    allowed.write_text("")
    with pytest.raises(Unsound, match="only an attestation with the signature of a trusted key"):
        check_continuation(entry, earlier, path.parent, allowed=allowed)


def test_a_signature_of_another_attestation_is_refused(path: Path, key: Path, tmp_path: Path) -> None:
    entry = _signed(attested(read_entry(path), bound=0.04), key)
    better = attested(read_entry(path), bound=0.0).history[-1]
    better = dataclasses.replace(better, signature=entry.history[-1].signature)
    forged = dataclasses.replace(entry, history=(*entry.history[:-1], better))
    with pytest.raises(Unsound, match="a signature in the history does not fit its attestation"):
        check_history(forged)
    statement = tmp_path / "statement.json"
    write_statement(entry.history[-1], statement)
    assert read_statement(statement)[2] == entry.history[-1].signature
    # The signature covers the bytes of the statement, so the file can be checked with ssh-keygen itself.
    command = ["ssh-keygen", "-Y", "check-novalidate", "-n", "robustbench_vlm", "-s", f"{statement}.sig"]
    assert subprocess.run(command, input=statement.read_bytes(), capture_output=True).returncode == 0
    statement.write_text(json.dumps(json.loads(statement.read_text()), indent=1))
    with pytest.raises(UserError, match="is not in its standard form"):
        read_statement(statement)


def test_without_ssh_keygen_entries_are_readable_and_signing_is_an_error(
    path: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = _signed(attested(read_entry(path)), key)
    monkeypatch.setattr(signature.shutil, "which", lambda name: None)
    write_entry(entry, path)
    check_entry(read_entry(path), path.parent)
    with pytest.raises(UserError, match="ssh-keygen is not installed"):
        sign(b"x", key)
    with pytest.raises(Unsound, match="the signature of a trusted key"):
        check_continuation(attested(entry), entry, path.parent)


def test_a_key_that_does_not_exist_is_named(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="the key /no/key does not exist: give the path of an SSH key"):
        sign(b"x", Path("/no/key"))


def test_machines_differ_by_a_random_identifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMBENCH_CACHE", str(tmp_path / "one"))
    first = machine_id()
    assert machine_id() == first and len(first) == 32
    monkeypatch.setenv("VLMBENCH_CACHE", str(tmp_path / "two"))
    assert machine_id() != first
    (tmp_path / "two" / "machine").write_text("me\n")
    assert set(machine_id()) <= set("0123456789abcdef")


def test_machines_are_equal_only_if_the_processor_is_known_and_equal() -> None:
    here = environment("cpu")
    assert is_equal_machine(here, here)
    older = {**here, "machine": {key: value for key, value in here["machine"].items() if key != "processor"}}
    newer = {**here, "versions": {**here["versions"], "torch": "9.9"}}
    other = {**here, "machine": {**here["machine"], "processor": "other"}}
    assert not any(is_equal_machine(each, here) for each in (older, newer, other, {}, {"machine": 3}))
