"""Registries: registered names load; unknown names and names with two providers are refused."""

import json
import re
from importlib.metadata import EntryPoint

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustbench_vlm.attacks import ATTACKS
from robustbench_vlm.cli.main import run_command
from robustbench_vlm.core import registry
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.registry import Registry, unknown
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.defenses import DEFENSES
from robustbench_vlm.models import ARCHITECTURES, MODELS, card_names
from robustbench_vlm.models.card import find_card
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.tracks import TRACKS

ALL = (ATTACKS, DATASETS, DEFENSES, ARCHITECTURES, MODELS, PROTOCOLS, TRACKS)
VALUES = Registry("thing", {"pi": "math:pi", "tau": "math:tau"})


@pytest.mark.parametrize(("table", "name"), [(table, name) for table in ALL for name in table.table])
def test_every_registered_name_loads(table: Registry, name: str) -> None:
    value = table.load(name)
    assert getattr(value, "name", name) == name


def test_each_kind_has_its_own_entry_point_group() -> None:
    assert len({table.group for table in ALL}) == len(ALL)
    assert DATASETS.group == "robustbench_vlm.datasets"


def provide(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    points = [EntryPoint(name, value, VALUES.group) for name, both in values.items() for value in both.split()]
    monkeypatch.setattr(registry, "entry_points", lambda group: [point for point in points if point.group == group])


def test_entry_points_of_other_packages_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    provide(monkeypatch, e="math:e")
    assert VALUES.names() == ["e", "pi", "tau"]
    assert VALUES.load("e") == pytest.approx(2.718281828)


def test_a_name_with_two_providers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    provide(monkeypatch, pi="cmath:pi", e="math:e cmath:e")
    with pytest.raises(UserError, match="math:pi and cmath:pi; uninstall all but one"):
        VALUES.load("pi")
    with pytest.raises(UserError, match="math:e and cmath:e"):
        VALUES.load("e")
    assert VALUES.load("tau") > 6


def test_a_package_on_two_import_paths_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    provide(monkeypatch, e="math:e math:e")
    assert VALUES.load("e") > 2


@pytest.mark.parametrize("value", ["no_such_module:x", "math:no_such_name"])
def test_a_broken_plugin_fails_only_when_it_is_loaded(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    provide(monkeypatch, broken=value)
    assert "broken" in VALUES.names()
    assert VALUES.load("pi") > 3
    with pytest.raises(UserError, match=f"plugin '{value}', which cannot be loaded: .*update or uninstall"):
        VALUES.load("broken")


@given(st.text(max_size=20), st.lists(st.text(max_size=10), max_size=5))
def test_the_message_for_an_unknown_name_lists_the_allowed_names(name: str, allowed: list[str]) -> None:
    message = unknown("thing", name, allowed)
    assert repr(name) in message
    assert all(other in message for other in allowed)


def test_the_message_lists_twelve_names_and_the_command_for_all() -> None:
    names = [f"n{number:02}" for number in range(42)]
    assert unknown("thing", "xyz", names[:12], "show all").endswith(f"Known: {', '.join(names[:12])}.")
    told = unknown("thing", "n41x", names, "show all")
    assert "Did you mean n41" in told
    assert told.endswith(f"Known: {', '.join(names[:12])} and 30 more; `show all` shows all 42.")
    assert unknown("thing", "xyz", names).endswith("n11 and 30 more.")


def test_the_command_in_the_message_lists_all_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as caught:
        find_card("nonesuch", "zeroshot15")
    command, count = re.findall(r"`vlmbench (.*?)` shows all (\d+)", str(caught.value))[0]
    assert run_command([*command.split(), "--json"]) == 0
    shown = [entry["name"] for entry in json.loads(capsys.readouterr().out)["entries"]]
    assert len([name for name in shown if name in card_names("zeroshot15")]) == int(count) > 12


def test_the_message_suggests_similar_names() -> None:
    assert "Did you mean tau?" in unknown("thing", "tao", VALUES.table)
    assert "Did you mean" not in unknown("thing", "xyz", VALUES.table)
    with pytest.raises(UserError, match="unknown thing 'tao'"):
        VALUES.load("tao")
