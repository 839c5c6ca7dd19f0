"""The protocols of the embedded track."""

from robustbench_vlm.protocols.base import Protocol

MINI = Protocol(
    name="mini",
    version=1,
    samples=200,
    description="the whole embedded protocol: 200 samples a set, float32, worst case over stages",
)
MINI_QUICK = Protocol(
    name="mini-quick",
    version=1,
    samples=8,
    description="the first 8 of mini's samples a set: a table within two minutes, with wide intervals",
)
