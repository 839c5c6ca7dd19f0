"""The order in which samples and their runs enter the batch of an attack."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

_REFILL = 8
"""New samples enter the batch when at least 1/8 of its places are free. Each refill copies all other rows of the batch,
so frequent refills are slow.
"""
_COMPANY = 16
"""A run starts early only together with the runs of other samples, in total at least this many. Matrix products round
differently for very few rows. Runs one after another leave the batch with very few rows only if most of these samples
break, so an early start changes no bit of an image in all but such cases.
"""


class Schedule:
    """The runs that wait for a place in the batch.

    An attack may run several times on a sample, for example once for each target class. The sample is finished at its
    first successful run. A run therefore starts when the runs before it have failed. If all samples have started and
    the batch has free places, a run also starts when the run before it has taken `head_start` steps without success,
    because most successful runs succeed early. If an earlier run succeeds later, `Schedule` forgets this run, and the
    caller removes it.
    """

    def __init__(self, runs: Sequence[int], head_start: int, batch_size: int) -> None:
        self._runs = runs
        """The number of runs of each sample."""
        self._head_start = head_start
        self._batch_size = batch_size
        self._enough = max(1, batch_size // _REFILL)
        self._fresh = [(sample, 0) for sample, count in enumerate(runs) if count]
        """The first runs of the samples that have not started."""
        self._latest: dict[int, tuple[int, int]] = {}
        """For each sample that is in the batch, its latest run and the step at which this run started."""
        self._step = 0

    def next(self, used: int) -> list[tuple[int, int]]:
        """Return the pairs (sample, run) that enter the batch before the next step. `used` places are in use."""
        self._step += 1
        free = self._batch_size - used
        waiting = self._fresh or (self._early() if free else [])
        if not waiting or free < min(len(waiting), self._enough):
            return []
        self._fresh = self._fresh[free:]
        for sample, run in waiting[:free]:
            self._latest[sample] = run, self._step
        return waiting[:free]

    def finish(self, ended: Iterable[tuple[int, int, bool]]) -> list[bool]:
        """Note finished runs, as triples (sample, run, succeeded).

        Returns for each of them whether the next run of its sample takes its place in the batch at the next step.
        """
        follows = []
        for sample, run, succeeded in ended:
            latest = self._latest.get(sample, (-1, 0))[0]
            follows.append(not succeeded and run == latest and run + 1 < self._runs[sample])
            if follows[-1]:
                self._latest[sample] = run + 1, self._step + 1
            elif succeeded or run == latest:
                self._latest.pop(sample, None)
        return follows

    def _early(self) -> list[tuple[int, int]]:
        together = defaultdict(list)
        for sample, (run, start) in self._latest.items():
            if start + self._head_start <= self._step and run + 1 < self._runs[sample]:
                together[run, start].append((sample, run + 1))
        return [pair for pairs in together.values() if len(pairs) >= _COMPANY for pair in pairs]
