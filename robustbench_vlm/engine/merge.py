"""The merge: pieces of a cell become its records, if these are exactly the protocol's samples."""

from collections import Counter
from collections.abc import Sequence

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.records import SampleResult
from robustbench_vlm.engine.store import Piece


def merge(pieces: Sequence[Piece], ids: Sequence[str]) -> list[SampleResult]:
    """Return the records in the order of `ids`, the ids of a cell's samples.

    Raises UserError where a sample is missing, is there twice, or is foreign to the cell.
    """
    results = [result for piece in pieces for result in piece.results]
    counts = Counter(result.sample_id for result in results)
    problems = {
        "missing": [sample for sample in ids if sample not in counts],
        "there twice": [sample for sample, count in counts.items() if count > 1],
        "foreign": sorted(counts.keys() - set(ids)),
    }
    for problem, samples in problems.items():
        if samples:
            raise UserError(
                f"the records are not the protocol's: {len(samples)} samples are {problem}, {samples[0]!r} first;"
                " remove the cell's folder and give the same command again"
            )
    by_id = {result.sample_id: result for result in results}
    return [by_id[sample] for sample in ids]
