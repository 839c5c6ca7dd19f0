"""The GitHub workflow for submissions: its permissions, and its script, run on real git clones."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from made_up_results import attested

from robustbench_vlm.leaderboard.entry import read_entry, write_entry
from robustbench_vlm.leaderboard.entry_records import make_entry, read_entry_records, write_records

FOLDER = Path(__file__).parents[2] / ".github"
WORKFLOW = FOLDER / "workflows" / "submission.yml"


def test_the_workflow_has_read_rights_only_and_runs_no_text_of_a_pull_request() -> None:
    for path in sorted((FOLDER / "workflows").glob("*.yml")):
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        # YAML reads the key `on` as true.
        assert "pull_request_target" not in document[True] and "workflow_run" not in document[True]
        assert set(document["permissions"].values()) == {"read"}
        for job in document["jobs"].values():
            assert "permissions" not in job
            for step in job["steps"]:
                assert "${{" not in step.get("run", "")
                assert "secrets." not in str(step)
                if step.get("uses", "").startswith("actions/checkout"):
                    assert step["with"]["persist-credentials"] is False


def test_only_the_base_branch_is_installed() -> None:
    steps = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]["verify"]["steps"]
    paths = {step["with"]["path"]: step["with"]["ref"] for step in steps if "checkout" in step.get("uses", "")}
    assert ".base.sha" in paths["trusted"] and ".head.sha" in paths["submitted"]
    commands = [step["run"] for step in steps if "run" in step]
    assert commands == [
        "pip install ./trusted",
        'trusted/.github/count_attempts.sh >> "$GITHUB_OUTPUT"',
        "trusted/.github/check_submission.sh submitted",
    ]


@pytest.mark.parametrize(
    ("runs", "again", "attempt"), [("1", "1", "1"), ("7", "1", "7"), ("7", "3", "9"), ("0", "1", "1")]
)
def test_the_checks_of_an_author_are_counted(runs: str, again: str, attempt: str, tmp_path: Path) -> None:
    (tmp_path / "gh").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/call\necho {runs}\n', encoding="utf-8")
    (tmp_path / "gh").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "REPOSITORY": "a/b", "ACTOR": "me", "RUN_ATTEMPT": again}
    script = ["bash", str(FOLDER / "count_attempts.sh")]
    assert subprocess.run(script, env=environment, capture_output=True, text=True).stdout == f"attempt={attempt}\n"
    assert "repos/a/b/actions/workflows/submission.yml/runs" in (tmp_path / "call").read_text(encoding="utf-8")
    (tmp_path / "gh").write_text("#!/bin/sh\necho no\n", encoding="utf-8")
    assert subprocess.run(script, env=environment, capture_output=True).returncode == 1


def test_a_failed_check_keeps_its_findings(clone: Path, tmp_path: Path, entry_path: Path) -> None:
    """The check finds an image that breaks a sample and fails. The image and the attestation must not be lost."""
    shutil.copytree(entry_path.parent, clone / "leaderboards" / "mini")
    _commit(clone)
    failing = 'test "$2" = --check && exit\necho found > "$7"\nmkdir leaderboards/mini/counterexamples\n'
    failing += "echo x > leaderboards/mini/counterexamples/0.safetensors\nexit 1"
    more = {"FINDINGS": str(tmp_path / "findings"), "ATTEMPT": "99"}
    code, _, calls = _check(clone, tmp_path, failing=failing, more=more)
    assert code == 1 and "--attempt 10 --attestation" in calls
    assert {path.name for path in (tmp_path / "findings").iterdir()} == {"taught.json", "0.safetensors"}
    assert _check(clone, tmp_path, more={"ATTEMPT": "1; touch evil"})[0] == 1 and not list(tmp_path.rglob("evil"))


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Return a git clone with one commit."""
    _git(tmp_path, "init", "--quiet", "clone")
    folder = tmp_path / "clone"
    (folder / "README.md").write_text("# Here\n", encoding="utf-8")
    _commit(folder)
    return folder


def _git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def _commit(folder: Path) -> None:
    _git(folder, "add", "--all")
    _git(folder, "commit", "--quiet", "--message", "change")


def _check(
    clone: Path, tmp_path: Path, base: str = "", *, failing: str = "", more: dict[str, str] | None = None
) -> tuple[int, str, str]:
    """Run the script on the changes since the commit `base`, by default the first one.

    A replacement of `vlmbench` records its calls, and then runs the shell commands in `failing`. `more` has variables
    of the environment. Returns the exit code, the output and the calls.
    """
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    calls = tools / "calls"
    noting = f'#!/bin/sh\necho "$@" >> {calls}\nfind . -name "*.safetensors" >> {calls}\n'
    noting += f'test -e "$(eval echo \\$$#)" || exit 1\n{failing}\n'
    (tools / "vlmbench").write_text(noting, encoding="utf-8")
    (tools / "vlmbench").chmod(0o755)
    base = base or _git(clone, "rev-list", "--max-parents=0", "HEAD")
    environment = {"PATH": f"{tools}:/usr/bin:/bin", "BASE": base, **(more or {})}
    script = str(FOLDER / "check_submission.sh")
    found = subprocess.run(["bash", script, str(clone)], env=environment, capture_output=True, text=True)
    return found.returncode, found.stdout + found.stderr, calls.read_text() if calls.exists() else ""


def test_changed_entries_are_checked_and_verified(clone: Path, tmp_path: Path, entry_path: Path) -> None:
    shutil.copytree(entry_path.parent, clone / "leaderboards" / "mini")
    (clone / "leaderboards" / "README.md").write_text("generated", encoding="utf-8")
    _commit(clone)
    code, output, calls = _check(clone, tmp_path)
    assert (code, output) == (0, "")
    table, first, second = calls.splitlines()
    assert re.fullmatch(
        r"verify --check --since \S+/old/leaderboards/mini/taught\.json leaderboards/mini/taught\.json", first
    )
    assert re.fullmatch(
        r"verify --samples 40 --attempt 1 --attestation \S+/taught\.json leaderboards/mini/taught\.json", second
    )
    # The generated table has changed, so it is compared with the entries.
    assert table == "leaderboard check --folder leaderboards"


def test_counterexamples_are_read_with_their_entry(clone: Path, tmp_path: Path, entry_path: Path) -> None:
    name = f"leaderboards/mini/counterexamples/{'0' * 64}.safetensors"
    (clone / name).parent.mkdir(parents=True)
    (clone / name).write_bytes(b"images")
    _commit(clone)
    assert "there is no entry in this submission" in _check(clone, tmp_path)[1]
    base = _git(clone, "rev-parse", "HEAD")
    shutil.copytree(entry_path.parent, clone / "leaderboards" / "mini", dirs_exist_ok=True)
    _commit(clone)
    code, output, calls = _check(clone, tmp_path, base)
    # The files of earlier disputes are included.
    assert (code, output) == (0, "") and calls.splitlines()[1::2] == [f"./{name}"] * 2
    (clone / name).write_bytes(bytes(100_000_001))
    _commit(clone)
    assert "more than 100000000 bytes" in _check(clone, tmp_path, base)[1]


def test_the_entry_of_changed_records_is_checked(clone: Path, tmp_path: Path, entry_path: Path) -> None:
    shutil.copytree(entry_path.parent, clone / "leaderboards" / "mini")
    (clone / "leaderboards" / "mini" / "records" / "orphan.parquet").write_bytes(b"x")
    _commit(clone)
    assert "there is no entry leaderboards/mini/orphan.json" in _check(clone, tmp_path)[1]


def test_only_the_table_of_the_readme_may_change(clone: Path, tmp_path: Path) -> None:
    block = "<!-- leaderboard mini -->\n| new |\n<!-- end of leaderboard -->\n"
    (clone / "README.md").write_text(f"# Here\n{block}", encoding="utf-8")
    _commit(clone)
    base = _git(clone, "rev-parse", "HEAD")
    (clone / "README.md").write_text(f"# Here\n{block.replace('new', 'newer')}", encoding="utf-8")
    _commit(clone)
    assert "there is no entry in this submission" in _check(clone, tmp_path, base)[1]
    for text in (
        f"# Buy this\n{block}",
        f"# Here\n{block}{block}",
        f"# Here\n{block}<!-- leaderboard x -->\nBuy this\n",
    ):
        (clone / "README.md").write_text(text, encoding="utf-8")
        _commit(clone)
        assert "changes more of it" in _check(clone, tmp_path, base)[1]


@pytest.mark.parametrize("name", ["README.md", "leaderboards/README.md"])
def test_a_table_may_not_become_a_link(name: str, clone: Path, tmp_path: Path) -> None:
    (clone / name).parent.mkdir(exist_ok=True)
    (clone / name).unlink(missing_ok=True)
    (clone / name).symlink_to("/etc/passwd")
    _commit(clone)
    code, output, calls = _check(clone, tmp_path)
    assert code == 1 and not calls and f"{name} is removed, or is not a plain file" in output


def test_the_entries_of_other_models_are_next_to_the_submission(clone: Path, tmp_path: Path, entry_path: Path) -> None:
    folder = clone / "leaderboards" / "mini"
    shutil.copytree(entry_path.parent, folder)
    _commit(clone)
    base = _git(clone, "rev-parse", "HEAD")
    entry = read_entry(folder / "taught.json")
    records = dataclasses.replace(entry.records, file="records/Taught.parquet")
    shutil.copy(folder / entry.records.file, folder / records.file)
    card = {**entry.card, "name": "Taught"}
    write_entry(dataclasses.replace(entry, model="Taught", card=card, records=records), folder / "Taught.json")
    _commit(clone)
    code, output = _real_check(clone, base)
    assert code == 1 and "differ only in upper and lower case" in output


def test_a_submission_passes_the_real_checks(clone: Path, tmp_path: Path) -> None:
    """Submit the bundled entry `clip` as it was before its verification, then with a status that it does not have."""
    source = FOLDER.parent / "leaderboards" / "mini"
    folder = clone / "leaderboards" / "mini"
    bundled = read_entry(source / "clip.json")
    # Records of one attack that the rank does not depend on are enough, and the check of them takes little time.
    evidence = [
        each
        for each in read_entry_records(bundled, source)
        if (each.score.attack, each.score.dataset, each.score.eps) == ("pgd-20", "shapes", "5/255")
    ]
    entry, content = make_entry(evidence, bundled.card, bundled.environment, bundled.protocol.identity)
    entry = entry.after("2026-11-24", "submission", "submitted")
    write_records(content, folder / entry.records.file)
    write_entry(entry, folder / "clip.json")
    _commit(clone)
    assert _real_check(clone) == (0, "")
    write_entry(attested(entry, date="2026-11-24"), folder / "clip.json")
    _commit(clone)
    code, output = _real_check(clone)
    assert code == 1 and "only an attestation with the signature of a trusted key may be added" in output


def _real_check(clone: Path, base: str = "") -> tuple[int, str]:
    """Run the script with few samples, and return the exit code and the contradictions."""
    base = base or _git(clone, "rev-list", "--max-parents=0", "HEAD")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "BASE": base}
    command = ["bash", str(FOLDER / "check_submission.sh"), str(clone), "2"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    return found.returncode, "".join(line for line in found.stdout.splitlines() if line.startswith("contradicted:"))


@pytest.mark.parametrize(
    "name",
    [
        "setup.py",
        ".github/workflows/evil.yml",
        "leaderboards/mini/evil.py",
        "leaderboards/mini/records/evil.json",
        "leaderboards/mini/counterexamples/evil.safetensors",
        "leaderboards/../evil.json",
        "leaderboards/mini/a b.json",
        "leaderboards/mini/$(touch evil).json",
        "leaderboards/mini/\nx.json",
    ],
)
def test_other_files_are_refused(name: str, clone: Path, tmp_path: Path) -> None:
    path = clone / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}", encoding="utf-8")
    _commit(clone)
    code, output, calls = _check(clone, tmp_path)
    assert code == 1 and calls == "" and re.search("and counterexamples only|is no entry", output)
    assert not list(tmp_path.rglob("evil"))


def test_links_and_removals_are_refused(clone: Path, tmp_path: Path) -> None:
    folder = clone / "leaderboards" / "mini"
    folder.mkdir(parents=True)
    (folder / "a.json").symlink_to("/etc/passwd")
    _commit(clone)
    assert _check(clone, tmp_path)[0] == 1 and "not a plain file" in _check(clone, tmp_path)[1]
    (folder / "a.json").unlink()
    _commit(clone)
    (clone / "leaderboards" / "README.md").write_text("other", encoding="utf-8")
    _commit(clone)
    assert "there is no entry in this submission" in _check(clone, tmp_path)[1]


def test_renaming_an_entry_counts_as_a_removal(clone: Path, tmp_path: Path, entry_path: Path) -> None:
    shutil.copytree(entry_path.parent, clone / "leaderboards" / "mini")
    _commit(clone)
    base = _git(clone, "rev-parse", "HEAD")
    _git(clone, "mv", "leaderboards/mini/taught.json", "leaderboards/mini/mine.json")
    _commit(clone)
    code, output, calls = _check(clone, tmp_path, base)
    assert code == 1 and calls == "" and "leaderboards/mini/taught.json is removed" in output
