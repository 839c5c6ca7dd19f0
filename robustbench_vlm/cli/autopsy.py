"""The command `vlmbench autopsy`: searches for the smallest attack that breaks a defense, and writes an attack file."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from robustbench_vlm.cli import options
from robustbench_vlm.cli.options import DEFAULT_TRACK, Json, option, with_options_of
from robustbench_vlm.cli.render.output import Line, answer, duration, note
from robustbench_vlm.cli.render.progress_bar import progress
from robustbench_vlm.cli.render.text_table import Columns, Row, table, wrapped
from robustbench_vlm.core.numbers import percent, percent_interval
from robustbench_vlm.core.text import plot_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from robustbench_vlm.analysis.autopsy import Autopsy
    from robustbench_vlm.engine.request import Request

_COLUMNS = Columns((), "round", ("attacks", "samples", "steps", "passes", "robust"), "best attack")
_MODEL = "Model: DEFENSE+MODEL, a name or a card file."
_Models = Annotated[list[str] | None, option("--model", "NAME", _MODEL)]
_Eps = Annotated[str, option("--eps", "EPS", "Radius, such as 8/255. Default: the track's standard radius.")]
_Budget = Annotated[int, option("--budget", "PASSES", "Forward and backward passes of the search.")]
_HeldOut = Annotated[int, option("--held-out", "N", "Samples of each dataset for the search. They are not reported.")]
_Plot = Annotated[Path | None, option("--plot", "FILE", "PNG or SVG file for robust accuracy by passes of the search.")]
_Out = Annotated[Path, option("--out", "FILE", "Attack file to write, such as found.json.")]


def request_of(
    named: options.ModelArguments = None,
    model: _Models = None,
    track: options.TrackName = DEFAULT_TRACK,
    dataset: options.Datasets = None,
    eps: _Eps = "",
    norm: options.Norm = "",
    protocol: options.ProtocolName = "",
    samples: options.SampleCount = "",
    data: options.DataFolder = None,
    batch_size: options.BatchSize = 0,
    device: options.Device = "",
) -> "Request":
    """Return the request for the given options. Raise UserError if a value is not allowed."""
    from robustbench_vlm.engine.request import Request
    from robustbench_vlm.engine.resources import Resources

    return Request(
        models=(*(named or ()), *(model or ())),
        track=track,
        datasets=tuple(dataset or ()),
        eps=(eps,) if eps else (),
        norm=norm,
        protocol=protocol,
        samples=options.sample_count(samples),
        data=data,
        resources=Resources(device=device, workers=1, batch_size=batch_size),
    )


def _autopsy(
    request: "Request",
    budget: _Budget = 200_000,
    held_out: _HeldOut = 8,
    out: _Out = Path("found.json"),
    plot: _Plot = None,
    as_json: Json = False,
) -> None:
    """Search for the smallest attack that breaks a defense, and write it as an attack file.

    The search compares attacks on held-out samples. The reported samples are attacked once, with the attack that it
    chooses. `vlmbench run --attack FILE` repeats this attack and writes records.
    """
    from robustbench_vlm.analysis.autopsy import autopsy as search
    from robustbench_vlm.attacks.attack_file import check_file_name, write_attack_file
    from robustbench_vlm.core.files import save_figure

    options.check_plot(plot)
    check_file_name(out)
    options.question_eps(request.eps, quiet=as_json)
    note("reading models and images", quiet=as_json)
    with progress("rounds", quiet=as_json) as on_progress:
        found = search(request, budget=budget, held_out=held_out, on_progress=on_progress)
    write_attack_file(found.attack, out)
    if plot is not None:
        save_figure(figure(found), plot)
    answer({**found.to_json(), "file": str(out)}, lambda width: lines(found, out, width), as_json=as_json)


autopsy = with_options_of(request_of, _autopsy)


def lines(found: "Autopsy", out: Path, width: int) -> list[Line]:
    """Return the table of the rounds, and sentences about the attack, the result and the search."""
    from robustbench_vlm.analysis.autopsy import entry_text

    rows: list[Row] = [
        {
            "round": str(number),
            "attacks": str(each.attacks),
            "samples": str(each.samples),
            "steps": "-".join(str(steps) for steps in dict.fromkeys(each.steps)),
            "passes": f"{each.passes:,}",
            "robust": str(each.robust),
            "best attack": entry_text(each.best),
        }
        for number, each in enumerate(found.rounds, 1)
    ]
    about = f"{found.model}, {found.norm} {found.eps}, search on {found.held_out} held-out samples"
    return [
        *wrapped(about, width),
        Line(""),
        *table(rows, _COLUMNS, width),
        Line(""),
        *(line for sentence in _sentences(found, out) for line in wrapped(sentence, width, indent="  ")),
    ]


def figure(found: "Autopsy") -> "Figure":
    """Draw the share of robust held-out samples under the best attack by passes, and the reported robust accuracy."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(6, 3.5), layout="constrained")
    axes = drawn.subplots()
    passes = [each.passes for each in found.rounds]
    axes.plot(passes, [100 * each.robust / each.samples for each in found.rounds], "o-", label="best attack, held out")
    robust = found.robust
    error = [[100 * max(robust.value - robust.low, 0)], [100 * max(robust.high - robust.value, 0)]]
    label = "attack file, reported samples"
    axes.errorbar([found.search_passes], [100 * robust.value], yerr=error, fmt="s", capsize=4, label=label)
    axes.set(xlabel="passes of the search", ylabel="robust accuracy in %", ylim=(-2, 102), title=plot_text(found.model))
    axes.legend()
    return drawn


def _sentences(found: "Autopsy", out: Path) -> Iterable[str]:
    from robustbench_vlm.analysis.autopsy import entry_text

    clean, robust = found.clean, found.robust
    yield f"attack: {entry_text(found.attack.stages[0])}"
    yield (
        f"clean accuracy {percent(clean.value)} %, robust accuracy {percent(robust.value)} %"
        f" ({percent_interval(robust.low, robust.high)}) on {robust.n} reported samples, protocol {found.protocol}"
    )
    yield f"tried: {found.tried}"
    yield f"not tried: {found.not_tried}"
    passes = f"{found.search_passes:,} passes for the search, {found.attack_passes:,} for the attack"
    yield f"{passes}, {duration(found.seconds)}"
    yield f"attack file {out}; repeat the attack with `vlmbench run --model {found.model} --attack {out}`"
