"""Script that runs a request in a separate process, so that tests can kill it: driver.py OUT CARD WORKERS [ADDRESS]."""

import sys
from pathlib import Path

from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.run import run


def request_of(out: Path, card: Path, workers: int, address: str = "") -> Request:
    """Return the request of the run. With an address, it uses the ray engine."""
    resources = Resources(
        "cpu", workers, batch_size=4, shard_size=4, engine="ray" if address else "local", address=address
    )
    return Request(
        models=(str(card),),
        attacks=("pgd-100",),
        datasets=("colours", "textures"),
        eps=("1/255", "2/255", "1/2550"),
        out=out,
        resources=resources,
    )


def main() -> None:
    out, card, workers, *address = sys.argv[1:]
    print("planning", flush=True)
    run(
        request_of(Path(out), Path(card), int(workers), *address),
        on_progress=lambda progress: print(progress.done, flush=True),
    )


if __name__ == "__main__":
    main()
