"""Leaderboards and entries for tests of the site: eight models, thirteen datasets, reported rows, hostile texts."""

import dataclasses
import random

from robustbench_vlm.comparison.compare import CurvePoint
from robustbench_vlm.core.records import Accuracy
from robustbench_vlm.leaderboard.board import Board, BoardRow, ReportedNumber
from robustbench_vlm.leaderboard.entry import (
    FORMAT,
    Counterexample,
    Entry,
    EntryCell,
    EntryProtocol,
    EntryScore,
    EntryThreat,
    RecordsFile,
)
from robustbench_vlm.leaderboard.history import Event, Subject
from robustbench_vlm.protocols.mini import MINI as PROTOCOL
from robustbench_vlm.tracks import MINI

NUMBERS = {
    "pmg-aft": (0.775, (0.670, 0.532, 0.343)),
    "agft": (0.773, (0.665, 0.531, 0.298)),
    "fare": (0.815, (0.683, 0.519, 0.266)),
    "tga-zsr": (0.740, (0.620, 0.484, 0.301)),
    "tecoa": (0.713, (0.599, 0.483, 0.292)),
    "gladiator": (0.708, (0.585, 0.468, 0.252)),
    "sim-clip": (0.888, (0.485, 0.119, 0.010)),
    "clip": (0.915, (0.260, 0.042, 0.019)),
}
"""Clean accuracy, and robust accuracy at 5/510, 5/255 and 10/255, similar to docs/zoo.md."""
_RANKS = ("1-3", "1-3", "1-3", "4-5", "4-5", "6", "7", "8")
_STATUSES = ("verified", "reproduced", "claimed", "claimed", "verified", "disputed", "claimed", "verified")
_WARNINGS: dict[str, tuple[str, ...]] = {
    "gladiator": ("black-box-wins: outlines", "robust-near-chance: low-contrast, backgrounds", "zero-gradient: digits"),
    "clip": ("near-chance: relations",),
}
_PAPERS = {
    "clip": "https://arxiv.org/abs/2103.00020",
    "tecoa": "https://arxiv.org/abs/2212.07016",
    "gladiator": "https://doi.org/10.1145/3690624.3709296",
}
DIGEST = "26516a0e2f44ec7cc71c0ac358d212a37be4d3b74479690f0ab76e1d2a47854c"

SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(2)>"
HOSTILE_NAME = "\"'><svg onload=alert(3)></style></script>\u202egnp.exe\u0000\x1b[31m"
HOSTILE_LINKS = {
    "code": "javascript:alert(4)",
    'contact"><b>': 'https://example.org/"onmouseover=alert(5)',
    "page": " https://example.org",
    "data": "data:text/html,<script>alert(6)</script>",
}


def accuracy(value: float, half: float = 0.015, n: int = 2600) -> Accuracy:
    return Accuracy(value, max(0.0, value - half), min(1.0, value + half), n)


def row(model: str, place: int) -> BoardRow:
    draw = random.Random(model)
    clean, robust = NUMBERS[model]
    cleans = sorted(NUMBERS, key=lambda name: -NUMBERS[name][0])
    datasets = {}
    for name in MINI.datasets:
        top = min(1.0, max(0.3, draw.gauss(clean, 0.15)))
        datasets[name] = {
            "clean": accuracy(top, 0.05, 200),
            "robust": accuracy(min(top, max(0.0, draw.gauss(robust[1], 0.18))), 0.07, 200),
        }
    status = _STATUSES[place]
    return BoardRow(
        model=model,
        rank=_RANKS[place],
        clean_rank=cleans.index(model) + 1,
        rank_difference=cleans.index(model) - place,
        status=status,
        defense="" if model == "clip" else model,
        fidelity={"clip": "", "gladiator": "reconstruction"}.get(model, "paper"),
        training="" if model == "clip" else "scenes, Linf 6/255",
        architecture="mini",
        paper=_PAPERS.get(model, "https://arxiv.org/abs/2402.12336"),
        licence="MIT",
        note="",
        links={"code": "https://example.org/code"},
        clean=accuracy(clean),
        robust=accuracy(robust[1]),
        under={
            "autoattack": accuracy(robust[1]),
            "cw": accuracy(robust[1] + 0.02),
            "pgd-20": accuracy(robust[1] + 0.03),
        },
        curve=tuple(
            CurvePoint(eps, float(radius), accuracy(value), ("autoattack", "cw", "pgd-20"))
            for eps, radius, value in zip(map(str, MINI.eps), MINI.eps, robust, strict=True)
        ),
        datasets=datasets,
        passes=1_234_567 + 1000 * place,
        warnings=_WARNINGS.get(model, ()),
        counterexamples=2 if status == "disputed" else 0,
        history=tuple(dataclasses.asdict(event) for event in events(status)),
        records={"file": f"records/{model}.parquet", "sha256": DIGEST, "url": ""},
        command=f"vlmbench run --model {model} --protocol mini --attack autoattack --attack cw --attack pgd-20",
    )


def events(status: str) -> tuple[Event, ...]:
    subject = Subject(DIGEST, DIGEST, DIGEST)
    first = Event(
        "2026-11-20", "submission", "Submitted with per-sample records of three attacks.", {}, subject, "", None, ""
    )
    if status == "claimed":
        return (first,)
    kind, what = {
        "reproduced": ("attestation", "200 stored samples were run again; all verdicts agree."),
        "verified": ("attestation", "All stored samples were run again; all verdicts agree."),
        "disputed": ("counterexamples", "Two samples reported as robust were broken by submitted images."),
    }[status]
    facts = {"samples": 200, "seed": "b7a1", "wrong at most": "1.5 %"}
    return first, Event("2026-11-24", kind, what, facts, subject, first.digest, None, "")


def entry(model: str) -> Entry:
    place = list(NUMBERS).index(model)
    made = row(model, place)
    cells = tuple(
        EntryCell(
            attack,
            dataset,
            EntryThreat("Linf", point.eps),
            DIGEST,
            DIGEST,
            EntryScore(
                classes=10,
                eps=point.eps,
                n=200,
                clean=made.datasets[dataset]["clean"].value,
                robust=point.robust.value,
                clean_interval=(0.5, 0.7),
                robust_interval=(point.robust.low, point.robust.high),
                warnings=(),
            ),
        )
        for attack in made.under
        for dataset in MINI.datasets
        for point in made.curve
    )
    broken = Counterexample("digits", "0042", "Linf", 0.0196, 3, DIGEST)
    return Entry(
        format=FORMAT,
        track="mini",
        model=model,
        card={"name": model, "architecture": "mini", "notes": "fidelity: paper"},
        weights=DIGEST,
        protocol=EntryProtocol(PROTOCOL.label, PROTOCOL.identity),
        datasets={},
        attacks={},
        cells=cells,
        records=RecordsFile(f"records/{model}.parquet", DIGEST, url=""),
        environment=(),
        history=events(made.status),
        counterexamples=(broken, dataclasses.replace(broken, sample_id="0107")) if made.counterexamples else (),
        links={},
        note="",
    )


def reported(papers: int = 3, numbers: int = 40) -> tuple[ReportedNumber, ...]:
    return tuple(
        ReportedNumber(
            method=("CLIP", "TeCoA", "FARE", "TGA-ZSR")[number % 4],
            paper=f"Paper {paper} (ICML 2024)",
            source=f"https://arxiv.org/abs/2402.1{paper:04d}",
            table=f"Table {1 + number % 3}",
            architecture="ViT-B/32",
            training="TinyImageNet, 1/255",
            attack=("PGD", "AutoAttack (APGD-CE and APGD-DLR, as its code runs it)")[number % 2],
            eps="1/255",
            steps="100" if number % 2 == 0 else "",
            dataset=("CIFAR10", "STL10", "mean of 16")[number % 3],
            clean=0.6 + 0.001 * number if number % 5 else None,
            robust=0.02 * (number % 30),
            confidence="primary" if number % 7 else "secondary (third-party summary)",
            note="" if number % 9 else "columns of table and text differ",
            warnings=("an undefended model has more than 1 % robust accuracy at 1/255",)
            if number % 4 == 0 and number
            else (),
        )
        for paper in range(1, papers + 1)
        for number in range(numbers)
    )


def board() -> Board:
    return Board(
        track="mini",
        description=MINI.description,
        protocol={"label": PROTOCOL.label, "identity": PROTOCOL.identity},
        attack="autoattack",
        norm="Linf",
        eps=str(MINI.standard_eps),
        datasets=MINI.datasets,
        seen=("handwritten",),
        rows=tuple(row(model, place) for place, model in enumerate(NUMBERS)),
        absent={},
        refused={},
        reported=reported(),
    )


def unmeasured_board() -> Board:
    """Return a board without models, with two datasets for which papers report numbers."""
    about = {"track": "zeroshot15", "datasets": ("cifar10", "stl10"), "seen": (), "eps": "1/255"}
    return dataclasses.replace(board(), **about, rows=(), reported=reported(3, 100))


def large_board(models: int) -> Board:
    """Return a board with many models, whose names and numbers differ."""
    rows = []
    for number in range(models):
        made = row(list(NUMBERS)[number % 8], number % 8)
        about = {"model": f"model-{number:04d}", "rank": f"{max(1, number - 20)}-{number + 20}"}
        places = {"clean_rank": models - number, "rank_difference": models - 2 * number}
        robust = accuracy(0.7 - 0.6 * number / models)
        rows.append(dataclasses.replace(made, robust=robust, **about, **places))
    return dataclasses.replace(board(), rows=tuple(rows))


def hostile_board() -> Board:
    """Return a board with hostile text in every field: markup, quotes, control characters, very long words."""
    endless = "w" * 10_000
    rows = []
    for number, name in enumerate((HOSTILE_NAME, SCRIPT, "../../index", endless, "=HYPERLINK(1)", "\ud800 half")):
        rows.append(
            dataclasses.replace(
                row("gladiator", 5),
                model=name,
                rank=str(number + 1),
                status=SCRIPT,
                defense=SCRIPT,
                fidelity=HOSTILE_NAME,
                training=endless,
                architecture=SCRIPT,
                paper=('https://arxiv.org/abs/2402.12336"><script>alert(7)</script>', "javascript:alert(8)")[
                    number % 2
                ],
                licence=HOSTILE_NAME,
                note=f"{SCRIPT} {HOSTILE_NAME} {endless}",
                links=HOSTILE_LINKS,
                under={SCRIPT: accuracy(0.5), endless: accuracy(0.4)},
                warnings=(SCRIPT, f"{HOSTILE_NAME}:{SCRIPT}", f"black-box-wins:{SCRIPT}", endless),
                history=(
                    {
                        "date": SCRIPT,
                        "kind": SCRIPT,
                        "status": HOSTILE_NAME,
                        "what": SCRIPT,
                        "facts": {SCRIPT: HOSTILE_NAME},
                    },
                ),
                records={"file": SCRIPT, "sha256": SCRIPT, "url": "javascript:alert(9)"},
                command=f"vlmbench run --model '{SCRIPT}' {HOSTILE_NAME}",
            )
        )
    numbers = tuple(
        dataclasses.replace(
            each,
            method=SCRIPT,
            paper=SCRIPT,
            source="javascript:alert(10)",
            table=HOSTILE_NAME,
            note=endless,
            warnings=(SCRIPT,),
            confidence=HOSTILE_NAME,
            dataset=endless,
            attack=SCRIPT,
        )
        for each in reported(1, 3)
    )
    identity = {"name": SCRIPT, "seed": HOSTILE_NAME}
    protocol = {"label": f"{SCRIPT}/1", "identity": identity}
    return dataclasses.replace(
        board(),
        track=SCRIPT,
        description=HOSTILE_NAME,
        protocol=protocol,
        rows=tuple(rows),
        absent={SCRIPT: SCRIPT, HOSTILE_NAME: endless},
        refused={SCRIPT: SCRIPT, HOSTILE_NAME: endless},
        reported=numbers,
    )


def hostile_entry() -> Entry:
    """Return the entry of the first model of `hostile_board`."""
    made = entry("gladiator")
    return dataclasses.replace(
        made,
        track=SCRIPT,
        model=HOSTILE_NAME,
        card={"notes": f"{SCRIPT}{HOSTILE_NAME}"},
        weights=SCRIPT,
        cells=tuple(dataclasses.replace(cell, attack=SCRIPT, dataset=HOSTILE_NAME) for cell in made.cells[:3]),
        counterexamples=(Counterexample(SCRIPT, HOSTILE_NAME, "Linf", 0.01, 1, SCRIPT),),
    )
