"""The command `vlmbench doctor`: self-tests of this installation."""

from typing import Annotated

from robustbench_vlm.cli.check import report
from robustbench_vlm.cli.options import DEFAULT_TRACK, Json, TrackName, option
from robustbench_vlm.cli.render.output import note


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
    return report(run_checks(track, model=model), as_json=as_json)
