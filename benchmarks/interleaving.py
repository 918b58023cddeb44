"""Interleaved timing: contenders take turns in one process, and disturbed rounds do not count."""

import itertools
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.02  # default: calls are repeated until one sample takes that long
TOLERATED_WAIT = 0.02  # share of a round that threads may have waited for a processor
PATIENCE = 2  # at most this many times the requested rounds
RESAMPLES = 2000  # of the rounds, for an interval

Run = Callable[[], object]
Contenders = dict[str, Run]
Round = dict[str, float]  # seconds per call of each contender


@dataclass
class Timing:
    """Seconds per call of each contender: the medians over rounds."""

    seconds: dict[str, float]
    rounds: int
    thrown_away: int
    disturbed: bool  # too few rounds were quiet, so all of them count
    # "rival/ours": where that ratio is, with 95 % confidence. Only where a width was asked for.
    intervals: dict[str, tuple[float, float]]

    def ratio(self, rival: str, ours: str = "ours") -> float:
        """How many times as fast as the rival."""
        return self.seconds[rival] / self.seconds[ours]

    def uncertainty(self, rival: str, ours: str = "ours") -> float:
        """Half the width of the ratio's interval."""
        low, high = self.intervals[f"{rival}/{ours}"]
        return (high - low) / 2

    @property
    def width(self) -> float:
        """Of the widest interval, as a share of the ratio."""
        return max(2 * (high - low) / (high + low) for low, high in self.intervals.values())


def interleaved(
    contenders: Contenders,
    rounds: int,
    prepare: Contenders | None = None,
    sample_seconds: float = SAMPLE_SECONDS,
    width: float | None = None,
    patience_seconds: float = 0.0,
) -> Timing:
    """Times all contenders in turn, round by round: so many rounds, and then, for at most
    `patience_seconds`, until the intervals of all ratios are no wider than `width`.

    Before each sample there is an untimed call of the same contender, so that it finds caches, heap
    and pages as it left them itself, and before that the contender's entry in `prepare` is called.

    A round in which threads of this process were ready but had to wait for a processor (which Linux
    counts) is discarded as a whole, because one stalled worker delays all others by a time slice of
    the scheduler. If there are too few undisturbed rounds, all of them count.
    """

    def sample(name: str) -> float:
        if prepare:
            prepare[name]()
        contenders[name]()
        return _seconds_per_call(contenders[name], calls[name])

    calls = {}
    for name, run in contenders.items():
        if prepare:
            prepare[name]()
        calls[name] = _calls_per_sample(run, sample_seconds)
    quiet: list[Round] = []
    every: list[Round] = []
    start = time.perf_counter()

    def timing() -> Timing:
        return _timing(quiet, every, rounds, with_intervals=width is not None)

    def is_wide() -> bool:
        if width is None or time.perf_counter() - start > patience_seconds:
            return False
        return timing().width > width

    while (len(quiet) < rounds and len(every) < PATIENCE * rounds) or is_wide():
        waited, began = _seconds_waited(), time.perf_counter()
        seconds = {name: sample(name) for name in contenders}
        wait_share = (_seconds_waited() - waited) / (time.perf_counter() - began)
        every.append(seconds)
        if wait_share <= TOLERATED_WAIT:
            quiet.append(seconds)
    return timing()


def _timing(quiet: list[Round], every: list[Round], rounds: int, with_intervals: bool) -> Timing:
    disturbed = len(quiet) < min(rounds, 5)
    counted = every if disturbed else quiet
    return Timing(
        {name: statistics.median(each[name] for each in counted) for name in counted[0]},
        len(counted),
        len(every) - len(counted),
        disturbed,
        {
            f"{rival}/{ours}": _interval(counted, rival, ours)
            for rival, ours in itertools.combinations(counted[0], 2)
            if with_intervals
        },
    )


def _interval(rounds: list[Round], rival: str, ours: str) -> tuple[float, float]:
    """The 95 % interval of a quotient of medians, by the bootstrap over rounds (Efron 1979)."""
    pick = random.Random(0).choices

    def quotient(drawn: list[Round]) -> float:
        def median(name: str) -> float:
            return statistics.median(each[name] for each in drawn)

        return median(rival) / median(ours)

    found = sorted(quotient(pick(rounds, k=len(rounds))) for _ in range(RESAMPLES))
    return found[RESAMPLES // 40], found[-1 - RESAMPLES // 40]


def _seconds_per_call(run: Run, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def _calls_per_sample(run: Run, sample_seconds: float) -> int:
    run()  # the first call pays for thread pools, compilers and page tables
    calls = 1
    while (seconds := _seconds_per_call(run, calls)) * calls < sample_seconds / 4:
        calls *= 4
    return max(1, round(sample_seconds / seconds))


def _seconds_waited() -> float:
    """Total time that threads of this process were runnable but not running (0 if unknown)."""
    nanoseconds = 0
    for task in Path("/proc/self/task").glob("*/schedstat"):
        try:
            nanoseconds += int(task.read_text().split()[1])
        except (OSError, IndexError):
            pass  # a thread that has just ended, or a kernel without these figures
    return nanoseconds * 1e-9
