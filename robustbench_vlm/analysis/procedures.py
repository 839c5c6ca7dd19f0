"""Evaluations of test-time defenses as their papers do them: the attacks of their released code, and its accuracy.

The numbers are for comparison. Except for CLIPure, these evaluations attack the model without the defense. An
evaluation of the defense attacks the model with the defense, as `vlmbench run` does.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_vlm.analysis.diagnose import final_images
from robustbench_vlm.attacks.apgd import apgd_stage
from robustbench_vlm.attacks.base import Attack, Batch
from robustbench_vlm.attacks.evaluate import attack_samples
from robustbench_vlm.attacks.model import logits_in_batches
from robustbench_vlm.attacks.pgd import pgd_attack, pgd_stage
from robustbench_vlm.core.classifier_interface import Classifier
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.registry import unknown
from robustbench_vlm.models.classifier import ZeroShotClassifier
from robustbench_vlm.test_time import a_tpt, r_tpt
from robustbench_vlm.test_time.base import DefenseContext
from robustbench_vlm.test_time.clipure import frozen_logits
from robustbench_vlm.test_time.defended_model import DefendedClassifier


@dataclass(frozen=True)
class Procedure:
    """The evaluation of a test-time defense as its released code does it."""

    attack: Attack
    """The attack. The radius is that of the track, and a step is the same fraction of the radius as in the code."""
    summary: str
    """The evaluation in one sentence."""
    source: str
    """The repository, its commit, and the file that was read."""
    is_frozen: bool = False
    """True if the attack sees the model with CLIPure-Cos, and its gradient treats the direction of each step as a
    constant. If it is False, the attack sees the model without the defense."""
    previous_texts: Callable[[DefenseContext, Tensor], Tensor] | None = None
    """The function that tunes the prompts, if the attack sees the prompts that were tuned on the image before. It maps
    a context and images (B, 3, H, W) to text embeddings (B, C, D) of norm 1."""
    is_8_bit: bool = False
    """True if pixels are truncated to 8 bits before the defense sees them."""
    unconfirmed: tuple[str, ...] = ()
    """Details of the evaluation that were not in the available code, one sentence each."""


def _one_stage(name: str, steps: int, relative_step: float, description: str) -> Attack:
    stage = pgd_stage(name, steps=steps, loss="ce", iterate="final", random_start=True, relative_step=relative_step)
    return dataclasses.replace(pgd_attack(steps, iterate="final"), name=name, stages=(stage,), description=description)


_APGD = Attack(
    "apgd-ce+apgd-t",
    (
        apgd_stage("apgd-ce", loss="softmax-ce", steps=100),
        apgd_stage("apgd-t", loss="targeted-dlr", steps=100, targets=9),
    ),
    "APGD-CE and APGD-T with 100 steps",
)
_PGD_100 = pgd_attack(100, iterate="final")
_AFTER_TUNING = (
    "PGD with 100 steps of eps/4 on the model with the prompts that were tuned to the previous image (they are reset"
    " after the attack); the last iterate, truncated to 8 bits"
)
_R_TPT = Procedure(
    _PGD_100,
    _AFTER_TUNING,
    "TomSheng21/R-TPT 961483d, rtpt.py",
    is_8_bit=True,
    previous_texts=r_tpt.texts_of,
    unconfirmed=("R-TPT also reports PGD with 7 steps; only the attack with 100 steps is repeated here",),
)
_A_TPT = Procedure(
    _PGD_100,
    _AFTER_TUNING,
    "SEU-VIPGroup/A-TPT 8f38a2a, atpt.py",
    is_8_bit=True,
    previous_texts=a_tpt.texts_of,
)
_CLIPURE = Procedure(
    _APGD,
    "APGD-CE and APGD-T through the forward pass; the gradient treats the direction of each step as a constant",
    "TMLResearchGroup-CAS/CLIPure 5b59554, CLIP_eval/CLIPure_Cos.py",
    is_frozen=True,
    unconfirmed=("the released code runs the image encoder in float16; here it runs in float32",),
)
PROCEDURES = {
    "a-tpt": _A_TPT,
    "a-tpt@16": _A_TPT,
    "ttc": Procedure(
        _one_stage("pgd-10", 10, 1.0, "PGD with 10 steps of the length eps"),
        "PGD with 10 steps of the length eps on the model without the defense; the last iterate",
        "Sxing2/CLIP-Test-time-Counterattacks 541481e, code/test_time_counterattack.py",
        unconfirmed=("the file attacks.py was not available, so the random start of PGD is an assumption",),
    ),
    "r-tpt": _R_TPT,
    "r-tpt@16": _R_TPT,
    "clipure-cos": _CLIPURE,
    "clipure-cos@short": _CLIPURE,
    "dbd": Procedure(
        _PGD_100,
        "PGD with 100 steps of eps/4 on the model without the defense; the last iterate, saved as 8-bit PNG",
        "gmXian/DBD d672db1 (a copy of liuls2002/DBD), generate_adv_images.py and infer_dbd.py",
        is_8_bit=True,
        unconfirmed=(
            "the paper's AutoAttack (a copy of torchattacks) and its attack on the prediction are not repeated",
        ),
    ),
    "et3": Procedure(
        _APGD,
        "APGD-CE and APGD-T with 100 steps on the model without the defense, which stop at the first success",
        "OmnAI-Lab/Energy-Guided-Test-Time-Defense 0ceea1d, CLIP/clip_benchmark/metrics/zeroshot_classification.py",
        unconfirmed=("the adaptive attack of the paper is not in the part of the code for CLIP",),
    ),
    "csr": Procedure(
        _one_stage("pgd-10", 10, 0.25, "PGD with 10 steps of eps/4"),
        "PGD with 10 steps of eps/4 on the model without the defense; the last iterate, saved as 8-bit PNG",
        "Summu77/CSR 2f2bd0c, csr/config.py and csr/data/dataset.py",
        is_8_bit=True,
        unconfirmed=(
            "the files of the attacks were not available: the step is read as pgd_alpha_scale * eps / pgd_steps, and"
            " the random start and the truncation to 8 bits are assumptions",
            "the attack called adaptive, PGD on the model without the defense with a penalty on high frequencies, is"
            " not repeated, because its formula was not available",
        ),
    ),
}
"""The evaluation of each test-time defense. The keys are the names of the defenses."""


def find_procedure(defense: str) -> Procedure:
    """Return the published evaluation of a test-time defense. Raises UserError if none is known."""
    if defense not in PROCEDURES:
        raise UserError(unknown("published evaluation of the test-time defense", defense, PROCEDURES))
    return PROCEDURES[defense]


def published_images(classifier: DefendedClassifier, batch: Batch, procedure: Procedure, *, batch_size: int) -> Tensor:
    """Return the images that the published evaluation gives to the defense, float32 (B, 3, H, W) in [0, 1].

    `classifier` is the classifier of the samples of `batch`, as `of_samples` returns it.
    """
    if procedure.previous_texts is not None:
        return _images_with_previous_prompts(classifier, batch, procedure)
    attacked: Classifier = classifier.plain
    if procedure.is_frozen:
        attacked = classifier.with_defense(dataclasses.replace(classifier.defense, logits=frozen_logits))
    stages = procedure.attack.stages
    if len(stages) == 1:
        images = final_images(attacked, batch, stages[0], batch_size=batch_size)
    else:
        images = attack_samples(attacked, batch, procedure.attack, batch_size=batch_size).adversarial
    return _in_8_bits(images) if procedure.is_8_bit else images


def _in_8_bits(images: Tensor) -> Tensor:
    return (255 * images).floor() / 255


def _images_with_previous_prompts(classifier: DefendedClassifier, batch: Batch, procedure: Procedure) -> Tensor:
    """Attack the samples one after the other. The first sample is attacked with untuned prompts.

    R-TPT and A-TPT reset the prompts after the attack, so the attack sees those tuned to the attacked image before.
    """
    (stage,), plain = procedure.attack.stages, classifier.plain
    assert procedure.previous_texts is not None
    texts, found = plain.text_features, []
    for n in torch.arange(len(batch.labels)).split(1):
        tuned = ZeroShotClassifier(plain.encoder, texts, plain.scale).eval().requires_grad_(False)
        images = _in_8_bits(final_images(tuned, batch.at(n), stage, batch_size=1))
        one = classifier.select(n)
        (texts,) = procedure.previous_texts(one.context(one.sample_keys, differentiate=False), images)
        found.append(images)
    return torch.cat(found)


def correct_as_published(
    classifier: DefendedClassifier, batch: Batch, procedure: Procedure, *, batch_size: int
) -> Tensor:
    """Return whether the model with the defense classifies each image of the published evaluation correctly, bool (B,).

    As in the papers, a sample counts even if its clean image is misclassified. The accuracy can therefore be higher
    than without an attack: an attack that knows the label moves the image away from it.
    """
    images = published_images(classifier, batch, procedure, batch_size=batch_size)
    return logits_in_batches(classifier, images, batch_size).argmax(dim=1) == batch.labels
