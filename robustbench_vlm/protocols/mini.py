"""The protocols of the built-in track `mini`."""

from robustbench_vlm.protocols.base import Protocol

MINI = Protocol(
    name="mini",
    version=1,
    samples=200,
    description="This protocol uses 200 samples per dataset and float32. A sample counts as robust if no stage of"
    " the attack breaks it",
)
MINI_QUICK = Protocol(
    name="mini-quick",
    version=1,
    samples=8,
    description="This protocol uses the first 8 samples of each dataset in the protocol mini. It gives a table"
    " of results within two minutes, with wide confidence intervals",
)
