"""A run as a process of its own, for the tests that kill it: driver.py OUT CARD WORKERS."""

import sys
from pathlib import Path

from robustbench_vlm.engine.estimate import Resources
from robustbench_vlm.engine.plan import Request
from robustbench_vlm.engine.run import run


def main() -> None:
    out, card, workers = sys.argv[1:]
    request = Request(
        models=(card,),
        attacks=("pgd-100",),
        datasets=("colours", "textures"),
        eps=("1/255", "2/255", "1/2550"),
        out=Path(out),
        resources=Resources(device="cpu", workers=int(workers), shard_size=4),
    )
    print("planning", flush=True)
    run(request, on_progress=lambda progress: print(progress.samples_done, flush=True))


if __name__ == "__main__":
    main()
