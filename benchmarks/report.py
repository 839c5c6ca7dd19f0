"""Shared parts of the benchmarks: common options, facts about the machine, and the report file."""

import argparse
import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from robustbench_vlm.core.numbers import percent
from robustbench_vlm.core.records import wilson


def parser_of(text: str | None, *, threads: int) -> argparse.ArgumentParser:
    """Return a parser with a benchmark's docstring as its help, and with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--out", type=Path, help="JSON file for the report")
    return parser


def default_device() -> str:
    """Return "cuda" if torch finds a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def machine(device: str = "cpu") -> dict[str, Any]:
    """Return the date, the processor or GPU, the number of threads, and the versions of the software."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    found = {
        "date": datetime.date.today().isoformat(),
        "platform": platform.platform(),
        "machine": name,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    return found | (_gpu() if device == "cuda" else {})


def _gpu() -> dict[str, Any]:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        driver = ""
    properties = torch.cuda.get_device_properties(0)
    return {
        "driver": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "gpu memory": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
    }


def share(count: int, n: int) -> str:
    """Return count / n in % with the 95 % Wilson interval, such as "50.0 (31.4-68.6)"."""
    low, high = wilson(count, n)
    return f"{percent(count / n)} ({percent(low)}-{percent(high)})"


def read(out: Path | None) -> dict[str, Any]:
    """Return the report of an earlier call, or {} if there is no file or it does not exist yet."""
    return json.loads(out.read_text(encoding="utf-8")) if out and out.exists() else {}


def write(report: Mapping[str, Any], out: Path | None) -> None:
    """Write a report if a file is given."""
    if out:
        out.write_text(json.dumps(report, indent=1) + "\n")
