"""A model with PReLU to save, and the other processes that run it: a fresh Python, a C++ program.

All numbers in it are small integers and powers of two: every sum is exact in any order, so another
process, or another compiler, must give the same bits.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import integer_values
from reference import assert_both_branches
from torch import nn

import torch_ext

REPOSITORY = Path(__file__).parent.parent
# As the Makefile sets it, also where pytest was started without make.
BUILD = Path(os.environ.get("TORCH_EXT_BUILD_DIR", REPOSITORY / "build" / Path(sys.prefix).name))

SLOPES = (-1.0, 0.25, 2.0, 0.0, -0.5, 1.0, 0.5)


class Network(nn.Module):
    """A PReLU per channel that was made as torch_ext.PReLU, and a shared one that was swapped in."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 12, 3)
        self.made = torch_ext.PReLU(12)
        self.second = nn.Conv2d(12, 3, 3)
        self.swapped = nn.PReLU()
        torch_ext.replace_prelu(self)

    def forward(self, input):
        return self.swapped(self.second(self.made(self.first(input))))


def exact_network():
    network = Network()
    with torch.no_grad():
        for seed, parameter in enumerate(network.parameters()):
            parameter.copy_(integer_values(parameter.shape, torch.float32, seed=seed, largest=2))
        network.made.weight.copy_(torch.tensor((SLOPES * 2)[:12]))
        network.swapped.weight.fill_(-0.25)
        hidden = network.first(images(4))
        assert_both_branches(hidden, network.second(network.made(hidden)))
    return network


def images(count, height=8):
    return integer_values((count, 2, height, 7), torch.float32, seed=count)


def cases(network, gradients=False):
    """Inputs of several sizes and what they should give: what run_saved_model.cpp reads."""
    made = []
    for count, height in ((1, 8), (3, 8), (4, 11)):
        input = images(count, height).requires_grad_(gradients)
        output = network(input)
        case = {"input": input.detach(), "output": output.detach()}
        if gradients:
            case["grad_output"] = integer_values(output.shape, torch.float32, seed=9, largest=3)
            names = ["grad_input", *(f"grad_{name}" for name, _ in network.named_parameters())]
            wanted = (input, *network.parameters())
            results = torch.autograd.grad(output, wanted, case["grad_output"])
            case |= dict(zip(names, results))
        made.append(case)
    return made


# ---- Other processes ---------------------------------------------------------------------------

FRESH_PYTHON = """
import sys, torch

load = {
    "torchscript": torch.jit.load,
    "export": lambda path: torch.export.load(path).module(),
    "aoti": lambda path: torch._inductor.aoti_load_package(path),
}[sys.argv[1]]
try:
    load(sys.argv[2])
    sys.exit("it loads without torch_ext")
except Exception as error:
    print(error, file=sys.stderr)

import torch_ext

model = load(sys.argv[2])
for case in torch.load(sys.argv[3]):
    assert torch.equal(model(case["input"]), case["output"])
    print("equal")
"""


def run_in_fresh_python(kind, model, cases, folder):
    """Runs a saved model in a new process. Returns what loading said before `import torch_ext`."""
    torch.save(cases, folder / "cases")
    done = subprocess.run(
        [sys.executable, "-c", FRESH_PYTHON, kind, str(model), str(folder / "cases")],
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(torch_ext.__file__).parent.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["equal"] * len(cases)
    return done.stderr


def run_in_cpp(kind, model, cases, folder, with_torch_ext=True):
    """Runs a saved model by a C++ program, which compares the results with those in `cases`."""
    done = _run_saved_model(kind, model, cases, folder, with_torch_ext)
    assert done.returncode == 0, done.stderr
    compared = sum(len(case.keys() - {"input", "grad_output"}) for case in cases)
    assert done.stdout.count(" is equal\n") == compared


def error_in_cpp(kind, model, cases, folder, with_torch_ext=True):
    """What the C++ program writes when it fails."""
    done = _run_saved_model(kind, model, cases, folder, with_torch_ext)
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    return done.stderr


def _run_saved_model(kind, model, cases, folder, with_torch_ext):
    program = "run_saved_model" if with_torch_ext else "run_saved_model_without_torch_ext"
    path = BUILD / "tests" / "cpp" / program
    if not path.is_file():
        pytest.skip(f"the C++ tests are not built (make build): there is no {path}")
    torch.save(cases, folder / "cases")
    return subprocess.run(
        [path, kind, str(model), str(folder / "cases")],
        check=False,
        env={name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"},
        capture_output=True,
        text=True,
    )
