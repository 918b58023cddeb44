"""Rules for parts of PyTorch arrive with them, whoever is imported first, and nothing heavy comes before."""

import importlib
import importlib.util
import inspect
import sys
import threading

import pytest
import torch
from installed import run_python

from torch_ext._post_import import when_imported

pytestmark = pytest.mark.contract


# A world of one process is enough to see whether DTensor knows the operators.
SHARD = """
def shard():
    import torch.distributed as dist
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    x = distribute_tensor(torch.tensor([[-2.0, 3.0]]), init_device_mesh("cpu", (1,)), [Shard(0)])
    output = torch_ext.prelu(x, torch.tensor(0.25))
    assert output.placements == (Shard(0),)
    assert output.to_local().tolist() == [[-0.5, 3.0]]
"""


def test_torch_ext_first_imports_nothing_heavy_and_the_rules_follow():
    run_python(
        f"""
import sys, torch, torch_ext
for heavy in ("torch.distributed.tensor", "torch._dynamo", "torch._inductor"):
    assert heavy not in sys.modules, heavy
{SHARD}
shard()

import importlib
watches = len(sys.meta_path)
importlib.reload(torch_ext)
assert len(sys.meta_path) == watches
shard()
"""
    )


def test_dtensor_first_gets_the_rules_from_torch_ext():
    done = run_python(f"import torch, torch.distributed.tensor, torch_ext\n{SHARD}\nshard()")
    assert "torch_ext" not in done.stderr


def test_rules_that_do_not_fit_are_a_warning_and_dtensor_stays_usable():
    done = run_python(
        f"""
import sys, torch, torch_ext
sys.modules["torch.distributed.tensor.experimental"] = None  # as if a later torch had moved it
import torch.distributed.tensor
{SHARD}
try:
    shard()
except NotImplementedError as error:
    print(error)
"""
    )
    assert "UserWarning: The operators of torch_ext will not run on DTensors" in done.stderr
    assert "Operator torch_ext.prelu.default does not have a sharding strategy" in done.stdout


# As if what a rule is registered with were missing in this torch.
MOVED = """
import sys, torch, torch_ext
{broken}
import {part}
"""
WITHOUT_PASS = "sys.modules['torch_ext._inductor_pass'] = None"


@pytest.mark.parametrize(
    "broken, part, what",
    (
        (WITHOUT_PASS, "torch._inductor.compile_fx", "torch.compile will keep the operators"),
        (
            "del torch_ext.onnx.register_symbolic",
            "torch.onnx",
            "dynamo=False) will not know the operators",
        ),
    ),
    ids=("inductor", "onnx"),
)
def test_a_rule_that_a_part_of_pytorch_does_not_take_is_a_warning(broken, part, what):
    warned = run_python(MOVED.format(broken=broken, part=part)).stderr
    assert what in warned and f"torch {torch.__version__} did not take" in warned


def test_without_its_pass_inductor_compiles_and_keeps_the_operators_whole(tmp_path):
    program = MOVED.format(broken=WITHOUT_PASS, part="torch._inductor.compile_fx")
    done = run_python(
        f"""
import os
os.environ["TORCHINDUCTOR_CACHE_DIR"] = {str(tmp_path)!r}
os.environ["TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS"] = "0"  # not worth it for one kernel
{program}
from torch._inductor.utils import run_and_get_code
x = torch.tensor([-2.0, 3.0])
with torch.no_grad():
    output, code = run_and_get_code(torch.compile(torch_ext.PReLU(), fullgraph=True), x)
print("torch_ext.prelu" in "".join(code), output.tolist())
"""
    )
    assert done.stdout.strip() == "True [-0.5, 3.0]"


# ---- The mechanism, on a module of our own ------------------------------------------------------


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module that nobody has imported."""
    name = f"watched_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = [*sys.meta_path]
    yield name
    sys.meta_path[:] = before
    sys.modules.pop(name, None)


def test_the_callback_comes_after_the_module_and_after_each_import(module):
    seen = []
    when_imported(module, lambda: seen.append(sys.modules[module].value))
    assert seen == []
    imported = importlib.import_module(module)
    assert seen == [1]
    importlib.import_module(module)
    assert seen == [1]
    importlib.reload(imported)
    assert seen == [1, 1]


def test_a_module_that_is_there_already_is_called_back_at_once(module):
    importlib.import_module(module)
    seen = []
    when_imported(module, lambda: seen.append("now"))
    assert seen == ["now"]


def test_asking_twice_watches_once_and_other_callbacks_are_called_too(module):
    seen = []

    def first():
        seen.append("first")

    before = len(sys.meta_path)
    when_imported(module, first)
    when_imported(module, first)
    assert len(sys.meta_path) == before + 1
    when_imported(module, lambda: seen.append("second"))
    importlib.import_module(module)
    assert sorted(seen) == ["first", "second"]


def test_the_module_looks_as_if_nobody_had_watched(module):
    when_imported(module, lambda: None)
    assert importlib.util.find_spec(module).loader.get_source(module) == "value = 1\n"
    imported = importlib.import_module(module)
    assert inspect.getsource(imported) == "value = 1\n"
    assert type(imported.__loader__).__module__.startswith("_frozen_importlib")
    assert "exec_module" not in vars(imported.__loader__)
    assert imported.__spec__.loader is imported.__loader__


def test_other_modules_and_missing_ones_are_found_and_missed_as_ever(module, tmp_path):
    when_imported(f"{module}.missing", lambda: pytest.fail("there is no such module"))
    with pytest.raises(ModuleNotFoundError, match="is not a package"):
        importlib.import_module(f"{module}.missing")
    when_imported("no_such_module", lambda: pytest.fail("there is no such module"))
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_module'"):
        importlib.import_module("no_such_module")


def test_threads_that_import_at_once_find_the_callback_done(module):
    done = []
    when_imported(module, lambda: done.append(True))
    start, seen = threading.Barrier(8), []

    def use():
        start.wait()
        importlib.import_module(module)
        seen.append(len(done))

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 8
