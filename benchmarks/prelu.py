"""Times PReLU, and norm + PReLU, layer by layer: PyTorch's, torch.compile of it, torch_ext, a plain copy.

All contenders take turns in one process, and their results are compared before anything is timed.
Rates count the bytes that must move: 2 tensors forward (x, y), 3 backward (x, g, the gradient of
x). Backward is timed on a retained graph; a step is forward and backward with a fresh one.
"""

import argparse
import os
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler's chatter; read when torch loads

import layer_report
import memory
import norm_layers
import records
import torch
import torch._functorch.config
from interleaving import Run, interleaved
from layer_cases import Case, all_cases, core_cases
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from stock import Prelu, agrees, stock_of
from torch import Tensor

import torch_ext

HUGE_PAGES_FROM = 32 << 20  # bytes of a tensor
TENSORS_AT_ONCE = (
    9  # of full size that a row may need: inputs, outputs, the temporaries of PyTorch's backward
)


def contenders(case: Case, compiled: bool) -> dict[str, Prelu]:
    stock = stock_of(case)
    prelus: dict[str, Prelu] = {"stock": stock, "ours": torch_ext.prelu}
    if compiled:
        torch._dynamo.reset()
        prelus["compile"] = torch.compile(lambda x, weight: stock(x, weight), dynamic=False)
    return prelus


@dataclass
class Runs:
    """What is timed of one case."""

    x: Tensor
    weight: Tensor
    grad_output: Tensor

    def forward(self, prelu: Prelu) -> Run:
        return lambda: prelu(self.x, self.weight)

    def backward(self, y: Tensor) -> Run:
        inputs = (self.x, self.weight)
        return lambda: torch.autograd.grad(y, inputs, self.grad_output, retain_graph=True)

    def step(self, prelu: Prelu) -> Run:
        inputs = (self.x, self.weight)
        return lambda: torch.autograd.grad(prelu(*inputs), inputs, self.grad_output)


def measure(case: Case, rounds: int, compiled: bool) -> layer_report.Row:
    x, weight, grad_output = case.tensors()
    if not agrees(case, x, weight, grad_output):
        raise SystemExit(f"{case.title}: results differ from PyTorch's; nothing was timed")
    prelus = contenders(case, compiled)
    runs = Runs(x, weight, grad_output)
    with torch.no_grad():
        forwards = {name: runs.forward(prelu) for name, prelu in prelus.items()}
        forward_times = interleaved({**forwards, "copy": lambda: x.clone()}, rounds)
    backwards = {name: runs.backward(prelu(x, weight)) for name, prelu in prelus.items()}
    backward_memory = {name: memory.of(run) for name, run in backwards.items()}
    backward_times = interleaved(backwards, rounds)
    backwards.clear()
    steps = {name: runs.step(prelu) for name, prelu in prelus.items()}
    step_times = interleaved(steps, rounds)
    return layer_report.Row(case, forward_times, backward_times, step_times, backward_memory)


def thread_scaling(cases: list[Case], rounds: int) -> list[layer_report.Scaling]:
    """One thread against all of them, interleaved, where the data stays in cache.

    The operators alone: autograd's engine, some 50 us a call, runs on one thread whatever we do.
    """
    threads = torch.get_num_threads()
    counts = {
        "one": lambda: torch.set_num_threads(1),
        "all": lambda: torch.set_num_threads(threads),
    }
    operators = torch.ops.torch_ext
    rows = []
    for case in cases:
        x, weight, grad_output = (tensor.detach() for tensor in case.tensors())
        ratios = {}
        for name, run in (
            ("forward", partial(operators.prelu, x, weight)),
            ("backward", partial(operators.prelu_backward, grad_output, x, weight, [True, True])),
        ):
            timing = interleaved({"one": run, "all": run}, rounds, prepare=counts)
            ratios[name] = timing.ratio("one", "all")
        rows.append(layer_report.Scaling(case, **ratios))
    torch.set_num_threads(threads)
    return rows


def is_cache_resident(case: Case) -> bool:
    return (1 << 20) <= case.bytes <= (4 << 20)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="the full product of cases: hours")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose title has TEXT")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (default: 9)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--no-scaling", action="store_true", help="leave thread scaling out")
    parser.add_argument(
        "--huge-pages",
        action="store_true",
        help="the cases from 32 MiB, with THP_MEM_ALLOC_ENABLE=1 for all contenders",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the ratios (.png, .svg)")
    return parser.parse_args()


def is_wanted(case: Case, tensors: int, huge_pages: bool) -> bool:
    if huge_pages and case.bytes < HUGE_PAGES_FROM:
        return False
    if tensors * case.bytes < memory.available_bytes():
        return True
    print(f"does not fit into memory, left out: {case.title}")
    return False


def main() -> None:
    options = arguments()
    if options.huge_pages and os.environ.get("THP_MEM_ALLOC_ENABLE") != "1":
        # PyTorch reads it once, when it starts.
        environment = os.environ | {"THP_MEM_ALLOC_ENABLE": "1"}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    # A retained graph may run backward twice only if its buffers are not given away.
    torch._functorch.config.donated_buffer = False
    listed = [
        case
        for case in (all_cases() if options.all else core_cases())
        if options.only in case.title
    ]
    cases = [case for case in listed if is_wanted(case, TENSORS_AT_ONCE, options.huge_pages)]
    norms = [
        case
        for case in norm_layers.chosen_cases(options.only)
        if is_wanted(case, norm_layers.TENSORS_AT_ONCE, options.huge_pages)
    ]
    rows, norm_rows = [], []
    columns = (TextColumn("{task.description}"), *Progress.get_default_columns()[1:])
    with Progress(*columns, MofNCompleteColumn(), TimeElapsedColumn(), transient=True) as progress:
        task = progress.add_task("", total=len(cases) + len(norms))
        for measured, chosen, by in (
            (rows, cases, measure),
            (norm_rows, norms, norm_layers.measure),
        ):
            for case in chosen:
                progress.update(task, description=f"{case.title:62}")
                measured.append(by(case, options.rounds, not options.no_compile))
                progress.advance(task)
        progress.update(task, description="1 thread against all")
        resident = [] if options.no_scaling else [c for c in cases if is_cache_resident(c)]
        scaling = thread_scaling(resident, options.rounds)

    machine = layer_report.Machine.here()
    tables = [layer_report.table(rows), layer_report.scaling_table(scaling)]
    judged = layer_report.targets(rows, scaling) + norm_layers.targets(norm_rows)
    layer_report.show(machine, [*tables, norm_layers.table(norm_rows)], judged)
    if options.json:
        record = layer_report.record(machine, rows, scaling, judged)
        record |= {"norm_rows": norm_layers.record(norm_rows)}
        record |= {"date": datetime.now(timezone.utc).isoformat(timespec="seconds")}
        records.write(record, options.json)
    if options.plot:
        layer_report.plot(machine, rows, options.plot)


if __name__ == "__main__":
    main()
