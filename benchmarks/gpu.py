"""Everything that the project needs a GPU for, in one call of under 8 minutes; the most valuable part comes first.

    python benchmarks/gpu.py --out benchmarks/gpu.json

The parts: tests of every device path, verdicts against the stored CPU records, equal runs, what happens when memory
runs out, attack throughput beside other implementations, training steps, and a small model end to end. The JSON file is
written after every part, so an interrupted call keeps what was measured. A part that fails is reported with its error,
and the next one begins. Nothing is timed before it was checked.

On a CPU the same parts run at a reduced size, so that the script cannot rot; such numbers are not measurements.
`python benchmarks/gpu.py --wheels DIR` collects the wheels for a GPU machine without a network (docs/scale.md).
"""

import argparse
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report
from gpu_parts import correctness, memory, throughput, training, wheels
from gpu_parts.settings import Settings, full_size, reduced_size

SECONDS = 460
"""Seconds that the whole call may take: under 8 minutes with the imports."""


@dataclass(frozen=True)
class Part:
    """One part of the call."""

    name: str
    run: Callable[[Settings, Callable[[Any], None]], Any]
    """Takes the settings and a function that stores an unfinished result; returns the whole result."""
    seconds: float
    """The part is skipped where fewer seconds are left."""


PARTS = (
    Part("tests", correctness.run_tests, 20),
    Part("verdicts", correctness.compare_verdicts, 20),
    Part("determinism", correctness.repeat_runs, 10),
    Part("out of memory", memory.run_out_of_memory, 10),
    Part("throughput", throughput.measure, 30),
    Part("training steps", training.time_steps, 20),
    Part("end to end", training.train_end_to_end, 30),
)


def run_parts(names: list[str], settings: Settings, out: Path | None, seconds: float) -> dict[str, Any]:
    """Run the named parts while there is time, and write what is known after each of them."""
    started = time.monotonic()
    whole: dict[str, Any] = {**report.machine(settings.device), "size": settings.name, "parts": {}}

    def store(name: str, found: Any) -> None:
        whole["parts"][name] = found
        whole["seconds"] = round(time.monotonic() - started, 1)
        report.write(whole, out)

    for part in (part for part in PARTS if part.name in names):
        left = seconds - (time.monotonic() - started)
        if left < part.seconds:
            store(part.name, {"skipped": f"{left:.0f} s were left, and this part needs {part.seconds:.0f}"})
            continue
        print(f"--- {part.name} ({left:.0f} s left)", flush=True)
        began, name = time.monotonic(), part.name
        try:
            found = part.run(settings, lambda unfinished, name=name: store(name, unfinished))
        except Exception as error:  # one failing part must not lose the others
            traceback.print_exc()
            found = {**whole["parts"].get(name, {}), "error": f"{type(error).__name__}: {error}"}
        store(name, {**found, "seconds": round(time.monotonic() - began, 1)})
    return whole


def table(whole: Mapping[str, Any]) -> list[str]:
    """Return the short table that is printed last: a line for each part, and its headline figures."""
    lines = [f"{whole['machine']}, torch {whole['torch']}, {whole['date']}, {whole['size']} size, {whole['seconds']} s"]
    for name, found in whole["parts"].items():
        state = "FAILED" if "error" in found else "skipped" if "skipped" in found else "done"
        lines.append(f"{name:16} {state:8} {found.get('error') or found.get('skipped') or ''}".rstrip())
        lines += [f"    {line}" for line in found.get("summary", [])]
    return lines


def main() -> int:
    """Read the command line, run the parts and print the table; return 1 where a part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file of the report; written after every part")
    parser.add_argument("--part", nargs="+", default=[part.name for part in PARTS], help="run these parts only")
    parser.add_argument("--device", choices=["cpu", "cuda"], default=report.default_device())
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for all parts together")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="collect wheels for a machine without a network")
    parser.add_argument("--python", default="3.12", help="Python version of that machine, for --wheels")
    options = parser.parse_args()
    if options.wheels:
        return wheels.collect(options.wheels, options.python)
    settings = full_size() if options.device == "cuda" else reduced_size()
    whole = run_parts(options.part, settings, options.out, options.seconds)
    print("\n".join(table(whole)))
    return int(any("error" in found for found in whole["parts"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
