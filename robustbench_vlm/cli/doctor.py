"""The command `vlmbench doctor`: self-tests of this installation."""

from typing import Annotated

from robustbench_vlm.cli.check import report
from robustbench_vlm.cli.options import DEFAULT_TRACK, Json, TrackName, option
from robustbench_vlm.cli.render.output import note
from robustbench_vlm.cli.render.progress_bar import progress


def doctor(
    track: TrackName = DEFAULT_TRACK,
    model: Annotated[
        str, option("--model", "NAME", "Undefended model to use for the tests. Default: the track's base model.")
    ] = "",
    as_json: Json = False,
) -> int:
    """Test whether this installation computes correct results.

    Exit code 1: a test fails. In this case, do not trust any number that this installation computes.
    """
    from robustbench_vlm.analysis.doctor import doctor as run_checks

    note("testing the installation", quiet=as_json)
    with progress("tests", quiet=as_json):
        results = run_checks(track, model=model)
    return report(results, as_json=as_json)
