"""Run all measurements that need a GPU, in one call of less than 8 minutes. The most important part runs first.

    python benchmarks/gpu.py --out benchmarks/gpu.json

The parts are the tests of every device path, a comparison of verdicts with the stored CPU records, repeated runs, the
behaviour without free memory, the attack throughput of several implementations, training steps, and the training and
evaluation of a small model. The JSON file is written after each part, so an interrupted call keeps the finished parts.
If a part fails, its error is reported and the next part runs. Each part checks the results before it measures times.

On a CPU the same parts run at a reduced size, as a test of the script. Their times are not measurements. `python
benchmarks/gpu.py --wheels DIR` downloads the wheels for a GPU machine without a network (docs/scale.md).
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
"""Seconds that all parts may take together. With the imports the call takes less than 8 minutes."""


@dataclass(frozen=True)
class Part:
    """One part of the call."""

    name: str
    run: Callable[[Settings, Callable[[Any], None]], Any]
    """Function that takes the settings and a function that stores an unfinished result, and returns the result."""
    seconds: float
    """The part is skipped if fewer seconds are left."""


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
    """Run the named parts while there is time, and write the results after each part."""
    started = time.monotonic()
    whole: dict[str, Any] = {**report.machine(settings.device), "size": settings.name, "parts": {}}

    def store(name: str, found: Any) -> None:
        whole["parts"][name] = found
        whole["seconds"] = round(time.monotonic() - started, 1)
        report.write(whole, out)

    for part in (part for part in PARTS if part.name in names):
        left = seconds - (time.monotonic() - started)
        if left < part.seconds:
            store(part.name, {"skipped": f"{left:.0f} s were left, but this part needs {part.seconds:.0f} s"})
            continue
        print(f"--- {part.name} ({left:.0f} s left)", flush=True)
        began, name = time.monotonic(), part.name
        try:
            found = part.run(settings, lambda unfinished, name=name: store(name, unfinished))
        except Exception as error:  # The other parts must still run if one part fails.
            traceback.print_exc()
            found = {**whole["parts"].get(name, {}), "error": f"{type(error).__name__}: {error}"}
        store(name, {**found, "seconds": round(time.monotonic() - began, 1)})
    return whole


def table(whole: Mapping[str, Any]) -> list[str]:
    """Return the short table that is printed last: a line for each part, followed by its main results."""
    lines = [f"{whole['machine']}, torch {whole['torch']}, {whole['date']}, {whole['size']} size, {whole['seconds']} s"]
    for name, found in whole["parts"].items():
        state = "FAILED" if "error" in found else "skipped" if "skipped" in found else "done"
        lines.append(f"{name:16} {state:8} {found.get('error') or found.get('skipped') or ''}".rstrip())
        lines += [f"    {line}" for line in found.get("summary", [])]
    return lines


def main() -> int:
    """Read the command line, run the parts and print the table; return 1 if a part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for the report, written after each part")
    parser.add_argument("--part", nargs="+", default=[part.name for part in PARTS], help="run only these parts")
    parser.add_argument("--device", choices=["cpu", "cuda"], default=report.default_device())
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for all parts together, in seconds")
    parser.add_argument(
        "--wheels",
        type=Path,
        metavar="DIR",
        help="download wheels for a machine without a network, and do nothing else",
    )
    parser.add_argument("--python", default="3.12", help="Python version of the machine that --wheels is for")
    options = parser.parse_args()
    if options.wheels:
        return wheels.collect(options.wheels, options.python)
    settings = full_size() if options.device == "cuda" else reduced_size()
    whole = run_parts(options.part, settings, options.out, options.seconds)
    print("\n".join(table(whole)))
    return int(any("error" in found for found in whole["parts"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
