"""The command `vlmbench diff protocol`: lists the differences between two protocols."""

from typing import Annotated

import typer

from robustbench_vlm.cli.options import Json, ValueName
from robustbench_vlm.cli.render.output import answer


def diff(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="protocol",
            help="The word protocol.",
            autocompletion=lambda: ["protocol"],
        ),
    ],
    first: ValueName,
    second: ValueName,
    as_json: Json = False,
) -> None:
    """List the differences between two protocols."""
    from robustbench_vlm.cli import kinds
    from robustbench_vlm.cli.render.protocols import difference_lines, differences

    kinds.check_is_protocol(kind)
    found = differences(first, second)
    document = {"first": first, "second": second, "differences": [vars(each) for each in found]}
    answer(document, lambda width: difference_lines(first, second, found, width), as_json=as_json)
