"""Wheels for a GPU machine without a network: all packages that this package and its GPU tests import, except torch."""

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

ROOTS = ("robustbench_vlm", "torchattacks", "pytest", "hypothesis", "transformers")
THERE = re.compile(
    r"torch$|torchvision$|triton|nvidia-|cuda-|jax|ray$|mkdocs|playwright|mypy|ruff|pandas-stubs|types-|build$"
)
"""Packages that a GPU machine already has (torch and its CUDA packages), or that no GPU test needs."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def needed(roots: tuple[str, ...] = ROOTS) -> dict[str, str]:
    """Return the names and versions of all packages that the roots need, without those that a GPU machine has.

    The version is "" for a package that is not installed here.
    """
    found: dict[str, str] = {}
    queue = list(roots)
    while queue:
        name = queue.pop().lower().replace("_", "-")
        if name in found or THERE.match(name):
            continue
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            # torchattacks is usually not installed here. The newest release is taken, without its requirements.
            found[name] = ""
            continue
        for requirement in requires(name) or []:
            # Requirements of extras are not needed. Other markers are taken as true, which can only download too many
            # wheels.
            if "extra ==" not in requirement:
                queue.append(re.match(r"[A-Za-z0-9._-]+", requirement)[0])  # type: ignore[index]
    return {name: found[name] for name in sorted(found) if name != "robustbench-vlm"}


def collect(folder: Path, python: str) -> int:
    """Download the wheels for a Python version on Linux x86-64 into a folder; return 1 if a wheel was not found."""
    failed = []
    for name, release in needed().items():
        platforms = [part for platform in (*PLATFORMS, "any") for part in ("--platform", platform)]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version", python, "--implementation", "cp", *platforms, "-d", str(folder)]
        wanted = f"{name}=={release}" if release else name
        if subprocess.run([*command, wanted], capture_output=True, check=False).returncode:
            failed.append(wanted)
    print(f"{len(list(folder.glob('*.whl')))} wheels in {folder}")
    if failed:
        print(f"no wheel for Python {python}: {', '.join(failed)}; install these on the GPU machine from their sources")
    print("on the GPU machine, run:")
    print(f"python -m pip install --no-index --no-deps --target site {folder}/*.whl; export PYTHONPATH=site:.")
    return int(bool(failed))
