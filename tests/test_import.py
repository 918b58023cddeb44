"""`import torch_ext` brings little along, touches nothing of the process, and needs no extras."""

import ast
import json
import sys
import textwrap

import pytest
from installed import PACKAGE, run_python

pytestmark = pytest.mark.contract

# Heavy, and not there after `import torch`: nothing of them may come with torch_ext, nor with a
# first call in eager mode.
HEAVY = (
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.tensor",
    "torch.onnx",
    "torch.utils.flop_counter",
    "triton",
)
EXTRAS = ("onnx", "onnx_ir", "onnxscript", "onnxruntime", "rich", "matplotlib", "pandas", "numpy")


def fresh(program, *options):
    """What a program prints as JSON in a fresh interpreter, and what it writes to stderr."""
    done = run_python(program, options=options)
    return json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def imported():
    """One process: modules and state before and after the import, and after a training step."""
    return fresh("""
        import json, os, sys, warnings
        import torch

        def state():
            return {
                "threads": torch.get_num_threads(),
                "interop threads": torch.get_num_interop_threads(),
                "dtype": str(torch.get_default_dtype()),
                "device": str(torch.get_default_device()),
                "grad": torch.is_grad_enabled(),
                "deterministic": torch.are_deterministic_algorithms_enabled(),
                "precision": torch.get_float32_matmul_precision(),
                "autocast": torch.is_autocast_enabled("cpu"),
                "seed": torch.initial_seed(),
                "random": hash(torch.get_rng_state().numpy().tobytes()),
                "denormal": 2.0**-1074,
                "filters": repr(warnings.filters),
                "path": sys.path,
                "environment": dict(os.environ),
                "tasks": len(os.listdir("/proc/self/task")),
                "directory": os.getcwd(),
            }

        state_before = state()
        before = set(sys.modules)
        warnings.simplefilter("error")
        import torch_ext
        warnings.filters.pop(0)
        after, state_after = set(sys.modules), state()
        cuda = torch.cuda.is_initialized()

        model = torch_ext.PReLU(3)
        torch_ext.replace_prelu(torch.nn.Sequential(torch.nn.PReLU()))
        model(torch.randn(4, 3, requires_grad=True)).sum().backward()
        torch_ext.build_info()
        print(json.dumps({
            "new": sorted(after - before),
            "state": [state_before, state_after],
            "new after a step": sorted(set(sys.modules) - before),
            "cuda": [cuda, torch.cuda.is_initialized()],
        }))
    """)[0]


def _within(modules, packages):
    return {m for m in modules for p in packages if m == p or m.startswith(p + ".")}


def test_it_brings_no_module_of_torch_and_none_of_another_package(imported):
    """Of the standard library it may; torch itself has most of that already."""
    packages = {name.split(".")[0] for name in imported["new"]}
    assert packages - set(sys.stdlib_module_names) == {"torch_ext"}


def test_neither_it_nor_a_training_step_brings_a_heavy_part_of_torch(imported):
    assert "torch_ext" in imported["new"]
    assert _within(imported["new"], HEAVY) == set()
    assert _within(imported["new after a step"], HEAVY) == set()


def test_it_initialises_no_cuda(imported):
    assert imported["cuda"] == [False, False]


def test_it_changes_nothing_of_the_process(imported):
    before, after = imported["state"]
    assert before["denormal"] > 0
    assert after == before


def test_threads_may_import_it_at_once_and_again_and_it_prints_nothing():
    """Without torch imported first; the operators are registered once, whatever happens."""
    output, errors = fresh("""
        import importlib, json, threading
        results = []

        def work():
            import torch_ext
            import torch
            results.append(torch_ext.prelu(torch.tensor([-2.0]), torch.tensor(0.25)).item())

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()

        import torch, torch_ext
        first = torch.ops.torch_ext.prelu
        importlib.reload(torch_ext)
        results.append(torch_ext.prelu(torch.tensor([-2.0]), torch.tensor(0.25)).item())
        print(json.dumps([results, first is torch.ops.torch_ext.prelu]))
    """)
    assert output == [[-0.5] * 9, True]
    assert errors == ""


# ---- Inside the package ------------------------------------------------------------------------


def _imports(path, package="torch_ext"):
    """The modules of the package that a file imports, at its top or later, by the names of files."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports in here are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        for name in names:
            parts = name.split(".")
            if parts[0] == package and len(parts) > 1 and (path.parent / f"{parts[1]}.py").exists():
                yield parts[1]


def import_circles(folder):
    """Modules that import themselves by way of others. (`__init__` is where all of them meet.)"""
    imports = {
        path.stem: set(_imports(path)) for path in folder.glob("*.py") if path.stem != "__init__"
    }
    assert sum(map(len, imports.values())) > len(imports) / 2  # they are found at all
    reached = {name: set(direct) for name, direct in imports.items()}
    for _ in imports:
        for name, found in reached.items():
            reached[name] = found.union(*(reached[other] for other in found))
    return {name for name, found in reached.items() if name in found}


def test_no_module_of_the_package_imports_itself_by_way_of_another():
    assert import_circles(PACKAGE) == set()


@pytest.mark.parametrize("how", ("from torch_ext.b import f", "from torch_ext import b"))
def test_a_planted_circle_is_found(how, tmp_path):
    (tmp_path / "a.py").write_text(f"def late():\n    {how}\n")
    (tmp_path / "b.py").write_text("import torch_ext.c\n")
    (tmp_path / "c.py").write_text("from torch_ext.a import late\n")
    (tmp_path / "d.py").write_text("from torch_ext.a import late\n")
    assert import_circles(tmp_path) == {"a", "b", "c"}


# ---- Extras ------------------------------------------------------------------------------------


# Returns what translation_table says, or null: part of the programs below.
ASK = """
def ask():
    try:
        torch_ext.onnx.translation_table()
    except ImportError as error:
        return [str(error), type(error.__cause__).__name__]
"""


def _without(packages, program):
    """Runs the program where these packages cannot be imported."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({packages!r}))\n"
    return fresh(blocked + ASK + textwrap.dedent(program), "-W", "ignore")[0]


def test_it_works_without_any_extra_and_export_says_what_to_install():
    program = """
        import json
        import torch, torch_ext
        input = torch.tensor([[-2.0, 3.0]], requires_grad=True)
        model = torch.nn.Sequential(torch_ext.PReLU(2), torch.nn.ReLU(), torch.nn.PReLU())
        report = torch_ext.replace_prelu(model)
        torch_ext.parametrize_relu(model, input)
        model(input).sum().backward()
        print(json.dumps([report.swapped, len(torch_ext.slope_parameters(model)), ask()]))
    """
    swapped, slopes, (message, cause) = _without(EXTRAS, program)
    assert swapped == ["2"] and slopes == 3
    assert "onnxscript" in message.split("):")[0]
    # The packages' own names, not torch_ext[...]: they can be typed as they stand.
    assert message.endswith("pip install onnx onnxscript")
    assert cause == "ModuleNotFoundError"


def test_export_without_onnx_alone_says_so_too():
    """onnxscript imports it."""
    message, _ = _without(["onnx"], "import json, torch_ext; print(json.dumps(ask()))")
    assert "onnx" in message.split("):")[0].split()
    assert message.endswith("pip install onnx onnxscript")
