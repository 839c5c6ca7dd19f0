"""Numbers that papers report: paired with clean accuracies, given warnings, and otherwise unchanged."""

from collections import Counter
from pathlib import Path

import pandas
import pytest

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import package_folder
from robustbench_vlm.leaderboard.reported import FILE, read_reported

HEAD = (
    "method,paper,arxiv,table,arch,train_dataset,train_eps,eval_attack,eval_eps,eval_steps,dataset,metric,"
    "value_percent,confidence,source_url,note"
)


def _row(method: str, attack: str, eps: str, value: str, metric: str = "robust", dataset: str = "DTD") -> str:
    return (
        f"{method},P,1,Table 1,ViT-B/32,ImageNet,1/255,{attack},{eps},10,{dataset},{metric},{value},primary,https://x,"
    )


def _read(folder: Path, *rows: str) -> dict[tuple[str, str, str], tuple[str, ...]]:
    (folder / FILE).write_text("\n".join([HEAD, *rows]) + "\n", encoding="utf-8")
    return {(each.method, each.attack, each.eps): each.warnings for each in read_reported(folder)}


def test_an_undefended_model_that_is_too_robust_gets_a_warning(tmp_path: Path) -> None:
    found = _read(
        tmp_path,
        _row("CLIP", "PGD", "1/255", "1.01"),
        _row("CLIP", "AutoAttack", "1/255", "1.00"),
        _row("CLIP", "PGD", "1/1000", "50"),
        _row("TeCoA", "PGD", "1/255", "50"),
        _row("CLIP", "PGD", "4/255", "6.0"),
    )
    doubted = [key for key, warnings in found.items() if any("undefended" in warning for warning in warnings)]
    assert doubted == [("CLIP", "PGD", "1/255"), ("CLIP", "PGD", "4/255")]


def test_autoattack_above_pgd_gets_a_warning(tmp_path: Path) -> None:
    found = _read(
        tmp_path,
        _row("TeCoA", "PGD", "1/255", "40.00"),
        _row("TeCoA", "AutoAttack", "1/255", "40.10"),
        _row("FARE", "PGD", "1/255", "40.00"),
        _row("FARE", "AutoAttack", "1/255", "39.90"),
        # A number at another radius or of another paper is not compared.
        _row("AGFT", "PGD", "2/255", "10.00"),
        _row("AGFT", "AutoAttack", "1/255", "30.00"),
    )
    assert [key[0] for key, warnings in found.items() if warnings] == ["TeCoA"]
    assert "40.00 %" in found["TeCoA", "AutoAttack", "1/255"][0]


def test_robust_accuracy_is_paired_with_the_clean_accuracy_of_the_same_model(tmp_path: Path) -> None:
    rows = [_row("A", "none", "0", "80", "clean"), _row("A", "PGD", "1/255", "40"), _row("B", "PGD", "1/255", "30")]
    _read(tmp_path, *rows)
    assert [(each.method, each.clean, each.robust) for each in read_reported(tmp_path)] == [
        ("A", 0.8, 0.4),
        ("B", None, 0.3),
    ]


def test_a_file_without_the_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"reported\.csv is not a table of reported numbers"):
        read_reported(tmp_path)
    assert read_reported(tmp_path / "absent") == ()


def test_the_table_of_the_real_track() -> None:
    found = read_reported(package_folder("leaderboards") / "zeroshot15")
    assert len(found) == 1830 and all(each.source.startswith("https://") for each in found)
    assert all(each.robust is not None and 0 <= each.robust <= 1 for each in found)
    doubts = Counter(warning.partition(" ")[0] for each in found for warning in each.warnings)
    table = pandas.read_csv(package_folder("leaderboards") / "zeroshot15" / FILE, keep_default_na=False)
    robust = table[table.metric == "robust"]
    large = robust[robust.eval_eps.isin(["1/255", "2/255", "4/255"])]
    assert doubts["an"] == len(large[(large.method == "CLIP") & (large.value_percent > 1)]) > 0
    key = ["paper", "method", "arch", "train_dataset", "train_eps", "dataset", "eval_eps"]
    weakest = robust[robust.eval_attack == "PGD"].groupby(key).value_percent.min().rename("pgd")
    auto = robust[robust.eval_attack.str.contains("AutoAttack|APGD")].join(weakest, on=key)
    assert doubts["this"] == (auto.value_percent > auto.pgd + 0.05 + 1e-7).sum() > 0
