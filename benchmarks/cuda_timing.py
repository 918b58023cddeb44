"""Device time of a call: captured in a CUDA graph, replayed, timed with events. And a rehearsal.

Cold: a buffer larger than the L2 is written before each replay. Warm: one graph holds several calls
after each other, so that a call finds what the one before it left in the L2. Contenders take turns;
medians over rounds. What cannot be captured is timed with events around the call, and says so.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

Run = Callable[[], object]
Times = dict[str, float]

WARM_SECONDS = 200e-6  # of work that a warm graph should hold; at most so many calls:
WARM_CALLS = 50
COLD_FLUSHES = 3  # how many times the L2 a flush writes
RANGE = "counted: "  # begins the profiler's name of a call whose kernels are counted
PAUSE_SECONDS = 0.002  # between two of them


@dataclass
class Timing:
    """Seconds per call; how each was run."""

    cold: Times = field(default_factory=dict)
    warm: Times = field(default_factory=dict)
    how: dict[str, str] = field(default_factory=dict)  # where not a graph


class Graphs:
    """Times contenders on the current GPU."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        flushed = COLD_FLUSHES * max(properties.L2_cache_size, 32 << 20)
        self.flush_buffer = torch.empty(flushed, dtype=torch.uint8, device="cuda")
        self.stream = torch.cuda.Stream()

    @contextlib.contextmanager
    def on_stream(self) -> Iterator[None]:
        """Where graphs are captured. Autograd runs a backward on its forward's stream: this one."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            yield
        torch.cuda.current_stream().wait_stream(self.stream)

    def time(self, contenders: dict[str, Run], only_cold: bool = False) -> Timing:
        timing = Timing()
        with self.on_stream():
            once = {
                name: self._replayable(name, run, 1, timing) for name, run in contenders.items()
            }
            timing.cold = self._rounds(once, dict.fromkeys(once, 1), flush=True)
            if not only_cold:
                calls = {name: self._warm_calls(timing.cold[name]) for name in contenders}
                many = {
                    name: self._replayable(name, run, calls[name], timing)
                    for name, run in contenders.items()
                }
                timing.warm = self._rounds(many, calls, flush=False)
        return timing

    def _warm_calls(self, seconds: float) -> int:
        return max(2, min(WARM_CALLS, int(WARM_SECONDS / seconds)))

    def _replayable(self, name: str, run: Run, calls: int, timing: Timing) -> Run:
        for _ in range(2):
            run()  # loads kernels, compiles, fills the allocator
        self.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            # torch.cuda.graph() would also collect garbage and empty the allocator's cache.
            graph.capture_begin()
            try:
                for _ in range(calls):
                    run()
            finally:
                graph.capture_end()
        except RuntimeError as error:
            torch.cuda.synchronize()
            timing.how[name] = f"not captured: {str(error).splitlines()[0][:120]}"
            return lambda: [run() for _ in range(calls)]
        return graph.replay

    def _rounds(self, replays: dict[str, Run], calls: dict[str, int], flush: bool) -> Times:
        for replay in replays.values():
            replay()
        events: dict[str, list[tuple[Any, Any]]] = {name: [] for name in replays}
        for _ in range(self.rounds):
            for name, replay in replays.items():
                if flush:
                    self.flush_buffer.zero_()
                else:
                    replay()  # finds the L2 as it leaves it, not as its rival did
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                replay()
                end.record()
                events[name].append((begin, end))
            self.stream.synchronize()
        return {
            name: statistics.median(begin.elapsed_time(end) for begin, end in pairs)
            * 1e-3
            / calls[name]
            for name, pairs in events.items()
        }

    def kernels(self, runs: dict[str, Run]) -> dict[str, list[str]]:
        """Names of what each call puts on the device: kernels, and memory copies or fills."""
        with self.on_stream():
            for run in runs.values():
                run()
            torch.cuda.synchronize()
            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
                for name, run in runs.items():
                    with record_function(RANGE + name):
                        run()
                        torch.cuda.synchronize()
                    time.sleep(PAUSE_SECONDS)
        return by_range(profiler.profiler.kineto_results.events())

    def peak_bytes(self, run: Run) -> int:
        """What one call asks the allocator for, at its peak, results included."""
        run()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_stats()["requested_bytes.all.current"]
        run()
        torch.cuda.synchronize()
        return int(torch.cuda.memory_stats()["requested_bytes.all.peak"] - before)

    def call_seconds(self, run: Run, calls: int = 100) -> float:
        """What a call costs the program: Python, dispatcher, launches; kernels overlap."""
        run()
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(calls):
            run()
        torch.cuda.synchronize()
        return (time.perf_counter() - began) / calls

    def release(self) -> None:
        """Memory of a case that is done."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def by_range(events: Iterable[Any]) -> dict[str, list[str]]:
    """The device's events by the range of the host in which they began.

    Each range ends with a synchronisation and is followed by a pause, so the two clocks need not
    agree to the microsecond. Ranges that the profiler draws on the device's line do not count.
    """
    events = list(events)
    on_device = torch.autograd.DeviceType.CUDA
    ranges = [
        event
        for event in events
        if event.name().startswith(RANGE) and event.device_type() != on_device
    ]
    work = [
        event
        for event in events
        if event.device_type() == on_device and not event.name().startswith(RANGE)
    ]
    slack = int(PAUSE_SECONDS * 1e9 / 4)
    return {
        one.name().removeprefix(RANGE): [
            event.name()
            for event in work
            if -slack <= event.start_ns() - one.start_ns() <= one.duration_ns() + slack
        ]
        for one in ranges
    }


class Clock(Graphs):
    """The same questions answered on the CPU by a clock: a rehearsal, not a measurement."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    @contextlib.contextmanager
    def on_stream(self) -> Iterator[None]:
        yield

    def time(self, contenders: dict[str, Run], only_cold: bool = False) -> Timing:
        timing = Timing()
        for name, run in contenders.items():
            run()
            samples = []
            for _ in range(self.rounds):
                began = time.perf_counter()
                run()
                samples.append(time.perf_counter() - began)
            timing.cold[name] = statistics.median(samples)
            timing.how[name] = "rehearsal: host clock"
        if not only_cold:
            timing.warm = dict(timing.cold)
        return timing

    def kernels(self, runs: dict[str, Run]) -> dict[str, list[str]]:
        return {name: [] for name in runs}

    def peak_bytes(self, run: Run) -> int:
        run()
        return 0

    def call_seconds(self, run: Run, calls: int = 100) -> float:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    def release(self) -> None:
        pass
