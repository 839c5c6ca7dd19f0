"""The protocols of the real track: two of this project (TRUSTED, TRUSTED_NATIVE), and four for published evaluations.

The four protocols follow the released code of AGFT (0031a8f), RobustVLM (7de10ee, with CLIP_benchmark), TeCoA (1243db6)
and TGA-ZSR (663fe57). The code differs from the papers in places. The description of a protocol lists its differences
from the code.
"""

import dataclasses

from robustbench_vlm.datasets.transform import NATIVE, Transform
from robustbench_vlm.protocols.base import Protocol

_CROP_OF_256 = Transform(256, 224, "bilinear")

TRUSTED = Protocol(
    name="trusted",
    version=1,
    samples=1000,
    prompt_source="trusted",
    transform=Transform(224, 224, "bicubic"),
    small_transform=NATIVE,
    description="This protocol uses 1000 samples per dataset. Each dataset has one prompt template, without the"
    " known errors of published prompts. The precision is float32 with TF32 off. CIFAR and STL10 are"
    " attacked at their stored resolution. PGD stops at the first misclassified iterate. A sample"
    " counts as robust if no stage of the attack breaks it",
)

TRUSTED_NATIVE = dataclasses.replace(
    TRUSTED,
    name="trusted-native",
    resolution="native",
    description="This protocol has the settings of the protocol trusted, with one exception. Each model is attacked at"
    " its input size, such as 256, 336 or 384 pixels, instead of 224. A larger image gives the attack more pixels, so"
    " compare only models with the same input size",
)

AGFT_2026 = Protocol(
    name="agft-2026",
    version=2,
    samples=None,
    precision="float16",
    verdict_precision="float16",
    logit_precision="float16",
    iterate="final",
    prompt_source="agft",
    transform=Transform(224, 224, "bilinear"),
    small_transform=NATIVE,
    attacks={"autoattack": "agft-autoattack", "cw": "agft-cw"},
    step_size="1/255",
    mean_over=128,
    description="This protocol follows the code of AGFT. It uses all samples and half precision. PGD and CW"
    " maximise the mean loss of 128 samples with steps of 1/255, and they return the final iterate."
    " AutoAttack consists of 10 steps of APGD-CE and 10 steps of APGD-DLR, which is the version 'rand'"
    " of torchattacks. The protocol differs from the code in seven points. (1) Text features and DLR are"
    " computed in float32. (2) The seed is fixed, and not taken from the clock. (3) A gradient is"
    " computed once, and not as the mean of 20 equal gradients. (4) Each sample is counted only once."
    " (5) CW continues after a sample is broken. (6) If a dataset has two classes, the margin loss is used instead"
    " of DLR, whose gradient would be 0. (7) CIFAR and STL10 are enlarged without antialiasing",
)

FARE_2024 = Protocol(
    name="fare-2024",
    version=2,
    samples=1000,
    datasets=(
        "caltech101",
        "cifar10",
        "cifar100",
        "dtd",
        "eurosat",
        "fgvc-aircraft",
        "flowers102",
        "imagenet-r",
        "imagenet-sketch",
        "oxford-pets",
        "pcam",
        "stanford-cars",
        "stl10",
    ),
    prompt_source="fare",
    transform=Transform(224, 224, "bicubic"),
    small_transform=NATIVE,
    attacks={"autoattack": "fare-autoattack"},
    description="This protocol follows the code of FARE. It uses the 13 datasets of FARE, the prompt ensembles of"
    " CLIP_benchmark, and float32. AutoAttack consists of APGD-CE with 5 restarts and APGD-T. The"
    " protocol differs from the code in five points. (1) It uses other samples, 1000 per dataset, because"
    " the code's choice of samples depends on the batch size. (2) EuroSAT and Caltech101 have all their"
    " samples, and not only VTAB's test part. (3) Caltech101 does not have its background class. (4) If"
    " a dataset has two classes, the code runs only APGD-CE, and the protocol runs both attacks. (5)"
    " ConvNeXt is attacked at 224 pixels, and not at 256 pixels",
)

TECOA_2023 = Protocol(
    name="tecoa-2023",
    version=2,
    samples=None,
    precision="float16",
    verdict_precision="float16",
    logit_precision="float16",
    iterate="final",
    prompt_source="tecoa",
    transform=_CROP_OF_256,
    small_transform=NATIVE,
    attacks={"autoattack": "tecoa-autoattack", "cw": "tecoa-cw"},
    step_size="1/255",
    mean_over=256,
    missing_datasets=("hateful-memes",),
    description="This protocol follows the code of TeCoA. It uses all samples and half precision. PGD and CW"
    " maximise the mean loss of 256 samples with steps of 1/255, and they return the final iterate."
    " The paper reports 100 steps. AutoAttack consists of APGD-CE and APGD-DLR. The protocol"
    " differs from the code in four points. (1) Text features and DLR are computed in float32. (2) The"
    " seed is fixed. (3) If a dataset has two classes, the code runs only APGD-CE, and the protocol"
    " runs both attacks. (4) The dataset Hateful Memes is missing in the protocol, because its prompts are unknown",
)

TGA_2024 = dataclasses.replace(
    TECOA_2023,
    name="tga-2024",
    prompt_source="tga",
    small_transform=Transform(224, None, "bilinear", squash=True),
    missing_datasets=("tiny-imagenet",),
    description="This protocol follows the code of TGA-ZSR. It is like tecoa-2023, but CIFAR and STL10 are"
    " enlarged to 224 pixels before the attack. On CIFAR, the attack can therefore change 49 times as"
    " many pixels. The published table also has TinyImageNet, the dataset for fine-tuning."
    " TinyImageNet is missing here, because its class names are unknown",
)
