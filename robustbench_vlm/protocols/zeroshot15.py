"""The protocols of the real track: the protocol of this project (TRUSTED), and four for published evaluations.

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
    description="1000 samples per dataset; one prompt template per dataset, without the known errors of published"
    " prompts; float32 with TF32 off; CIFAR and STL10 are attacked at their stored resolution; PGD stops at the first"
    " misclassified iterate; a sample counts as robust if no stage of the attack breaks it",
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
    description="AGFT's code: all samples; half precision; PGD and CW maximise the mean loss of 128 samples with steps"
    " of 1/255 and return the final iterate; AutoAttack is 10 steps of APGD-CE and APGD-DLR, the version 'rand' of"
    " torchattacks. This protocol differs from the code as follows: text features and DLR are computed in float32; the"
    " seed is fixed, not the clock; a gradient is computed once, not averaged over 20 equal ones; no sample counts"
    " twice; CW continues after a sample is broken; DLR is not used with two classes, because its gradient"
    " would be 0; CIFAR and STL10 are enlarged without antialiasing",
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
    description="FARE's code: its 13 datasets; prompt ensembles of CLIP_benchmark; float32; APGD-CE with 5 restarts"
    " and APGD-T. This protocol differs from the code as follows: it uses a different set of 1000 samples, because"
    " the code's choice depends on the batch size; EuroSAT and Caltech101 have all samples instead of VTAB's test"
    " part; Caltech101 does not have its background class; with two classes the code runs only APGD-CE; ConvNeXt is"
    " attacked at 224 pixels, not 256",
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
    description="TeCoA's code: all samples; half precision; PGD and CW maximise the mean loss of 256 samples with steps"
    " of 1/255 and return the final iterate (the paper reports 100 steps); AutoAttack is APGD-CE and APGD-DLR. This"
    " protocol differs from the code as follows: text features and DLR are computed in float32; the seed is fixed; with"
    " two classes the code runs only APGD-CE; Hateful Memes is missing, because its prompts are unknown",
)

TGA_2024 = dataclasses.replace(
    TECOA_2023,
    name="tga-2024",
    prompt_source="tga",
    small_transform=Transform(224, None, "bilinear", squash=True),
    missing_datasets=("tiny-imagenet",),
    description="TGA-ZSR's code: like tecoa-2023, except that CIFAR and STL10 are enlarged to 224 pixels before the"
    " attack, so the attack can change 49 times as many pixels on CIFAR. The published table also has TinyImageNet, the"
    " fine-tuning dataset; it is missing here, because its class names are unknown",
)
