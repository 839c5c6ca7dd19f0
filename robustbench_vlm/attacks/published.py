"""Attacks that published code runs under the names of others; protocols put them in the place of those."""

from robustbench_vlm.attacks.stage import Attack
from robustbench_vlm.attacks.standard import one_stage, own_stage

_APGD, _PGD = "robustbench_vlm.attacks.apgd:apgd", "robustbench_vlm.attacks.gradient:pgd"


def _apgd(loss: str, *, steps: int, targets: int = 0, restarts: int = 1) -> dict[str, object]:
    return {"loss": loss, "steps": steps, "targets": targets, "restarts": restarts}


def _margin_pgd(steps: int) -> dict[str, object]:
    return {"steps": steps, "loss": "margin", "keep": "final", "random_start": True, "step_size": "1/255"}


AGFT_AUTOATTACK = Attack(
    "agft-autoattack",
    (
        own_stage("apgd-ce-10", _APGD, _apgd("softmax-ce", steps=10)),
        own_stage("apgd-dlr-10", _APGD, _apgd("dlr", steps=10)),
    ),
    "what AGFT's code calls AutoAttack: 10 steps of APGD-CE, then 10 of APGD-DLR",
    paper="YuboCui/AGFT 0031a8f, attacks/autoattack.py",
)
AGFT_CW = one_stage(
    own_stage("agft-cw", _PGD, {**_margin_pgd(20), "mean_over": 128}),
    "what AGFT's code calls CW: PGD, 20 steps of 1/255 on the margin, the last counts",
    "YuboCui/AGFT 0031a8f, attacks/cw.py",
    norms=("Linf",),
)
TECOA_AUTOATTACK = Attack(
    "tecoa-autoattack",
    (
        own_stage("apgd-ce", _APGD, _apgd("softmax-ce", steps=100)),
        own_stage("apgd-dlr", _APGD, _apgd("dlr", steps=100)),
    ),
    "what the code of TeCoA and TGA-ZSR calls AutoAttack: APGD-CE, then APGD-DLR",
    paper="cvlab-columbia/ZSRobust4FoundationModel 1243db6, attacks.py",
)
TECOA_CW = one_stage(
    own_stage("tecoa-cw", _PGD, _margin_pgd(100)),
    "what the code of TeCoA and TGA-ZSR calls CW: PGD, 100 steps of 1/255 on the margin, the last counts",
    "cvlab-columbia/ZSRobust4FoundationModel 1243db6, attacks.py",
    norms=("Linf",),
)
FARE_AUTOATTACK = Attack(
    "fare-autoattack",
    (
        own_stage("apgd-ce-5x", _APGD, _apgd("softmax-ce", steps=100, restarts=5)),
        own_stage("apgd-t", _APGD, _apgd("targeted-dlr", steps=100, targets=9)),
    ),
    "what FARE's code calls AutoAttack: APGD-CE with 5 restarts, then APGD-T",
    paper="chs20/RobustVLM 7de10ee, autoattack/autoattack.py",
)
