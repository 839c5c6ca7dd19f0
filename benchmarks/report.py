"""What the benchmarks share: their common options, the machine that they ran on, and the report as a file."""

import argparse
import datetime
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def parser_of(text: str | None, *, threads: int) -> argparse.ArgumentParser:
    """Return a parser with a benchmark's docstring as its help, and the options that all of them have."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--out", type=Path, help="a JSON file for the report")
    return parser


def machine(device: str = "cpu") -> dict[str, Any]:
    """Return the date, the processor that worked, its threads, and torch's version."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {
        "date": datetime.date.today().isoformat(),
        "platform": platform.platform(),
        "machine": name,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def write(report: Mapping[str, Any], out: Path | None) -> None:
    """Write a report where a file is given."""
    if out:
        out.write_text(json.dumps(report, indent=1) + "\n")
