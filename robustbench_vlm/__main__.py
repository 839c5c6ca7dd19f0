"""Entry point of `python -m robustbench_vlm`, which does the same as `vlmbench`."""

from robustbench_vlm.cli.main import main

main()
