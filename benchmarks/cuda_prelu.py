"""Times PReLU on a GPU, layer by layer: torch_ext, PyTorch's, torch.compile, and plain copies.

A stage of `make gpu` (tests/gpu/session.py), which keeps and judges the rows; or by itself:
`python benchmarks/cuda_prelu.py --set=targets`. Contenders take turns in one process, and results
are compared with PyTorch's before anything is timed. A copy moves the same bytes as what it is
compared with: two tensors forward, three backward.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler's chatter; read when torch loads

import cuda_cases
import torch
import torch._functorch.config
from cuda_cases import CudaCase
from cuda_timing import Clock, Graphs, Run, Timing
from stock import Prelu, agrees, stock_of
from torch import Tensor

import torch_ext

TENSORS_AT_ONCE = 14  # of full size that a case may hold: inputs, results in graphs, copies
CALL_BYTES = 4 << 20  # up to here the cost of a call itself is told
LARGE_BYTES = 64 << 20  # first in the compile set, as its time may not suffice for all
REHEARSAL_BYTES = 1 << 20  # a tensor of more is left out of a rehearsal


def copy_of(moved_bytes: int, device: str) -> Run:
    """A copy that moves so many bytes: half of them read, half of them written."""
    source = torch.ones(max(moved_bytes // 2, 1), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


class Bench:
    def __init__(self, device: str, clock: Graphs) -> None:
        self.device = device
        self.clock = clock

    def measure(self, case: CudaCase, kind: str) -> dict:
        """Figures of one case: against a copy and PyTorch's operator, or of steps against torch.compile."""
        tensors = case.tensors_on(self.device)
        if not agrees(case, *tensors):
            raise AssertionError(f"{case.title}: results differ from PyTorch's; nothing was timed")
        figures = {
            "bytes": case.bytes,
            "aligned": case.aligned,
            "slopes": case.slope_count,
            "copies": case.copies,
        }
        figures |= (
            self._compile(case, *tensors) if kind == "compile" else self._eager(case, *tensors)
        )
        return figures

    def _eager(self, case: CudaCase, x: Tensor, weight: Tensor, grad_output: Tensor) -> dict:
        prelus = {"ours": torch_ext.prelu, "stock": stock_of(case)}
        figures: dict = {"kernels": {}, "memory": {}, "call": {}, "kernel_names": {}}
        with torch.no_grad():
            forwards = {
                name: (lambda prelu=prelu: prelu(x, weight)) for name, prelu in prelus.items()
            }
            copy = {"copy": copy_of(2 * case.bytes, self.device)}
            figures["forward"] = _figures(self.clock.time({**forwards, **copy}))
            copy.clear()
        with self.clock.on_stream():  # autograd will run backward on the stream of forward
            outputs = {name: prelu(x, weight) for name, prelu in prelus.items()}
        backwards = {name: self._backward(y, x, weight, grad_output) for name, y in outputs.items()}
        copy = {"copy": copy_of(3 * case.bytes, self.device)}
        figures["backward"] = _figures(self.clock.time({**backwards, **copy}))
        copy.clear()
        with torch.no_grad():
            self._count(figures, "forward", forwards)
        self._count(figures, "backward", backwards)
        for name, run in backwards.items():
            figures["memory"][name] = self.clock.peak_bytes(run)
        steps = {name: self._step(prelu, x, weight, grad_output) for name, prelu in prelus.items()}
        figures["step"] = _figures(self.clock.time(steps, only_cold=True))
        if case.bytes <= CALL_BYTES:
            for name, run in steps.items():
                figures["call"][name] = self.clock.call_seconds(run)
        return figures

    def _compile(self, case: CudaCase, x: Tensor, weight: Tensor, grad_output: Tensor) -> dict:
        torch._dynamo.reset()
        stock = stock_of(case)
        compiled = torch.compile(lambda x, weight: stock(x, weight), dynamic=False)
        steps = {
            name: self._step(prelu, x, weight, grad_output)
            for name, prelu in (("ours", torch_ext.prelu), ("compile", compiled))
        }
        figures: dict = {"compiled_step": _figures(self.clock.time(steps, only_cold=True))}
        figures |= {"kernels": {}, "kernel_names": {}}
        self._count(figures, "compiled_step", steps)
        return figures

    def _count(self, figures: dict, what: str, runs: dict[str, Run]) -> None:
        names = self.clock.kernels(runs)
        counts = {who: len(found) or None for who, found in names.items()}
        figures["kernels"][what] = counts
        figures["kernel_names"] |= {f"{what} {who}": found for who, found in names.items()}

    @staticmethod
    def _backward(y: Tensor, x: Tensor, weight: Tensor, grad_output: Tensor) -> Run:
        return lambda: torch.autograd.grad(y, (x, weight), grad_output, retain_graph=True)

    @staticmethod
    def _step(prelu: Prelu, x: Tensor, weight: Tensor, grad_output: Tensor) -> Run:
        return lambda: torch.autograd.grad(prelu(x, weight), (x, weight), grad_output)


def _figures(timing: Timing) -> dict:
    return {key: value for key, value in asdict(timing).items() if value}


def brief(figures: dict) -> str:
    """Microseconds, useful TB/s, and how many times as fast as each rival."""
    parts = []
    for what, tensors in (("forward", 2), ("backward", 3), ("step", 5), ("compiled_step", 5)):
        times = figures.get(what, {}).get("cold", {})
        if ours := times.get("ours"):
            rate = tensors * figures["bytes"] / ours / 1e12
            rivals = (f"{n} x {t / ours:.2f}" for n, t in times.items() if n != "ours")
            parts.append(f"{what} {ours * 1e6:.1f} us, {rate:.2f} TB/s, {', '.join(rivals)}")
    return "; ".join(parts)


def chosen_cases(options: argparse.Namespace) -> list[CudaCase]:
    """The compile set has every case once; core cases that are targets too are not repeated."""
    targets, core = cuda_cases.target_cases(), cuda_cases.core_cases()
    if options.set == "targets":
        cases = targets
    elif options.set == "core":
        cases = [case for case in core if case not in targets]
    else:
        cases = [case for case in targets if case.bytes >= LARGE_BYTES]
        cases += [case for case in [*core, *targets] if case not in cases]
        cases = list(dict.fromkeys(cases))
    cases = [case for case in cases if options.only in case.title]
    if options.device == "cpu":
        cases = [case for case in cases if case.bytes <= REHEARSAL_BYTES][:3]
    return cases


def fits(case: CudaCase, device: str) -> bool:
    if device == "cpu":
        return True
    torch.cuda.empty_cache()
    return TENSORS_AT_ONCE * case.bytes < torch.cuda.mem_get_info()[0]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", choices=("targets", "core", "compile"), default="targets")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose title has TEXT")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds (default: 15)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: rehearsal")
    parser.add_argument("--rows", type=Path, help="a file to add each row to, a line a row")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no case after so many")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    # A retained graph may run backward twice only if its buffers are not given away.
    torch._functorch.config.donated_buffer = False
    clock = Clock(2) if options.device == "cpu" else Graphs(options.rounds)
    bench = Bench(options.device, clock)
    failed = 0
    started = time.perf_counter()
    for case in chosen_cases(options):
        if time.perf_counter() - started > options.seconds:
            print(f"{case.title}: left out, no time was left for it")
            continue
        if not fits(case, options.device):
            print(f"{case.title}: left out, it does not fit into the GPU's memory")
            continue
        began = time.perf_counter()
        try:
            figures = bench.measure(case, options.set)
        except Exception as error:  # noqa: BLE001  (the next case may work)
            print(f"{case.title}: {type(error).__name__}: {error}", flush=True)
            failed += 1
            continue
        finally:
            clock.release()
        if options.rows:
            with options.rows.open("a") as file:  # at once: a run that is stopped loses nothing
                print(json.dumps([case.title, figures]), file=file)
        print(f"{case.title}: {brief(figures)} ({time.perf_counter() - began:.1f} s)", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
