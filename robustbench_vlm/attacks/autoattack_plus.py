"""AutoAttack followed by stronger stages. A sample counts as robust only if no stage breaks it.

The stages after AutoAttack are PMA, MALT, APGD on rescaled logits, APGD on image embeddings, APGD on cross-entropy
with five restarts, and Square Attack with four times as many queries. The official AutoAttack also has a version
"plus", with other stages: untargeted APGD and FAB with five restarts.
"""

from dataclasses import replace

from robustbench_vlm.attacks.apgd import apgd_stage
from robustbench_vlm.attacks.autoattack import AUTOATTACK
from robustbench_vlm.attacks.feature_attack import FEATURE_STAGE
from robustbench_vlm.attacks.malt import MALT_STAGE
from robustbench_vlm.attacks.probability_margin_attack import PMA_STAGE
from robustbench_vlm.attacks.rescaled import RESCALED_STAGE
from robustbench_vlm.attacks.square import square_stage

_RESTARTS = apgd_stage("apgd-ce-5x", loss="ce", steps=100, targets=0, restarts=5)
_SQUARE = square_stage("square-20000", queries=20_000, p_init=0.8)

STRONGER_STAGES = (PMA_STAGE, MALT_STAGE, RESCALED_STAGE, FEATURE_STAGE, _RESTARTS, _SQUARE)
"""The stages of `autoattack-plus` that AutoAttack does not have."""

AUTOATTACK_PLUS = replace(
    AUTOATTACK,
    name="autoattack-plus",
    stages=(*AUTOATTACK.stages, *STRONGER_STAGES),
    description="AutoAttack, PMA, MALT, APGD on rescaled logits, on embeddings and with 5 restarts, Square with 20000"
    " queries",
    paper="arXiv:2003.01690, arXiv:2411.15210, arXiv:2407.02240",
    strength=1_000_001,
)
