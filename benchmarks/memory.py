"""What a call allocates, as PyTorch's own allocator reports it; and what the machine has left."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Memory:
    """Of one call, results included."""

    allocations: tuple[int, ...]  # bytes of each
    peak: int  # bytes, the most that was held at once

    def full_size(self, tensor_bytes: int) -> int:
        """How many allocations had the size of the data (or float32 for 16-bit data)."""
        return sum(size >= tensor_bytes for size in self.allocations)

    def beside(self, tensor_bytes: int) -> int:
        """Bytes at the peak beyond one tensor, which is the result."""
        return self.peak - tensor_bytes


def of(run: Callable[[], object]) -> Memory:
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    changes = [e for e in events if e.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    held = peak = 0
    for event in changes:
        held += event.nbytes()
        peak = max(peak, held)
    return Memory(tuple(e.nbytes() for e in changes if e.nbytes() > 0), peak)


def saved_bytes(run: Callable[[], object]) -> int:
    """Bytes that a forward's results hold: what is kept for the backward, and the results themselves.

    (Hooks on saved tensors would count them as well, but norms that fuse_norm_prelu has changed are not
    fused under such hooks.)
    """
    run()  # what a first call keeps for all later ones does not count
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    del result
    events = profiler.profiler.kineto_results.events()
    return sum(event.nbytes() for event in events if event.name() == "[memory]")


def available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo does not say how much memory is available")
