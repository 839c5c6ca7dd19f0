"""`python -m robustbench_vlm` is `vlmbench`."""

from robustbench_vlm.cli.main import main

main()
