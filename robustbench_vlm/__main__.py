"""`python -m robustbench_vlm` is `vlmbench`."""

from robustbench_vlm.cli import main

main()
