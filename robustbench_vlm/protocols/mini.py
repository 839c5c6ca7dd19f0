"""The protocols of the built-in track `mini`."""

from robustbench_vlm.protocols.base import Protocol

MINI = Protocol(
    name="mini",
    version=1,
    samples=200,
    description="200 samples per dataset, float32; a sample counts as robust if no stage of the attack breaks it",
)
MINI_QUICK = Protocol(
    name="mini-quick",
    version=1,
    samples=8,
    description="the first 8 samples of mini per dataset: a table within two minutes, with wide confidence intervals",
)
