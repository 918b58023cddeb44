"""A stand-in for CUDA on the CPU: rehearses tests where there is no GPU (`-p gpu.pretend`).

What is asked for on "cuda" is made on the CPU and remembered as being there. Operators that would
get tensors of both devices raise, tensors and results say that they are on cuda:0, streams and
events do nothing, and a graph repeats the operators that it saw while it was captured. So a test's
own mistakes (a tensor on the wrong device, a wrong name in torch.cuda) show before a GPU does. It
proves nothing about kernels.
"""

import contextlib
import functools
import os

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda", 0)
_there = {}  # storages that are on "cuda": by address; the reference keeps an address from reuse

# What takes tensors of both devices on purpose.
_MIXING = {"copy_", "to", "cpu", "cuda", "set_", "__get__", "__set__", "type_as", "new_tensor"}
_MIXING |= {"_has_compatible_shallow_copy_type", "__getitem__", "__setitem__"}


def _storages(value):
    if isinstance(value, torch.Tensor):
        with contextlib.suppress(NotImplementedError, RuntimeError):  # meta, fake, sparse ones
            yield value, value.untyped_storage()
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _storages(item)
    elif isinstance(value, dict):
        yield from _storages(list(value.values()))


def _is_there(storage):
    return storage._cdata in _there and not _there[storage._cdata].expired()


def _put_there(values):
    for _, storage in _storages(values):
        _there[storage._cdata] = StorageWeakRef(storage)


def _devices(values):
    """Of the tensors with elements and dimensions: CUDA operators take single numbers of the CPU."""
    return {_is_there(storage) for tensor, storage in _storages(values) if tensor.dim() > 0}


def _names_cuda(value):
    if isinstance(value, (str, torch.device)):
        return str(value).startswith("cuda")
    return False


class PretendCuda(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if name in ("to", "cuda", "cpu") and isinstance(args[0], torch.Tensor):
            return self._move(name, function, args, kwargs)
        wanted = kwargs.get("device")
        if _names_cuda(wanted):
            kwargs["device"] = "cpu"
        if name == "__get__" and isinstance(args[0], torch.Tensor):
            return self._property(function, args)
        devices = _devices([args, kwargs])
        if devices == {True, False} and name not in _MIXING:
            raise RuntimeError(f"Expected all tensors to be on the same device: {name} got both")
        result = function(*args, **kwargs)
        inputs_there = any(_is_there(storage) for _, storage in _storages([args, kwargs]))
        if _names_cuda(wanted) or (wanted is None and inputs_there and name != "copy_"):
            _put_there(result)
        return result

    def _property(self, function, args):
        value = function(*args)
        owner = getattr(function, "__self__", None)
        there = any(_is_there(storage) for _, storage in _storages(args[0]))
        if there and owner is torch.Tensor.device:
            return CUDA
        if owner is torch.Tensor.is_cuda:
            return there
        if there:  # .grad, .data, .T
            _put_there(value)
        return value

    def _move(self, name, function, args, kwargs):
        tensor = args[0]
        words = [*args[1:], *kwargs.values()]
        to_cuda = name == "cuda" or any(map(_names_cuda, words))
        to_cpu = name == "cpu" or any(str(word) == "cpu" for word in words)
        was_there = any(_is_there(storage) for _, storage in _storages(tensor))
        for other in words:  # x.to(y)
            if isinstance(other, torch.Tensor):
                to_cuda = any(_is_there(storage) for _, storage in _storages(other))
                to_cpu = not to_cuda
        if name == "cuda":
            args, kwargs = args[:1], {}
            function = torch.Tensor.cpu
        clean = ["cpu" if _names_cuda(word) else word for word in args[1:]]
        kwargs = {key: "cpu" if _names_cuda(word) else word for key, word in kwargs.items()}
        result = function(tensor, *clean, **kwargs)
        moved = (to_cuda and not was_there) or (to_cpu and was_there)
        if moved and result.data_ptr() == tensor.data_ptr():
            result = result.clone()
        if to_cuda or (was_there and not to_cpu):
            _put_there(result)
        return result


# ---- torch.cuda ----------------------------------------------------------------------------------


class Stream:
    cuda_stream = 0
    device = CUDA

    def __init__(self, *args, **kwargs):
        pass

    def _nothing(self, *args):
        pass

    wait_stream = wait_event = synchronize = record_event = _nothing
    __enter__ = _nothing

    def __exit__(self, *error):
        pass


class Event(Stream):
    queries = 0

    def record(self, stream=None):
        self.queries = 0

    def query(self):
        self.queries += 1
        return self.queries > 1

    def elapsed_time(self, other):
        return 1.0


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []
        self.before = []  # what was changed in place: a capture only records

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._schema.is_mutable:
            self.before += [(tensor, tensor.clone()) for tensor, _ in _storages([args])]
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result


class CUDAGraph:
    def replay(self):
        with torch.no_grad(), torch._C.DisableTorchFunction():
            for function, args, kwargs, results in self.recorder.calls:
                inputs = {storage._cdata for _, storage in _storages([args, kwargs])}
                again = function(*args, **kwargs)
                for (old, storage), (new, _) in zip(_storages([results]), _storages([again])):
                    if storage._cdata not in inputs:
                        old.data.copy_(new)


@contextlib.contextmanager
def graph(cuda_graph, **options):
    cuda_graph.recorder = _Recorder()
    with cuda_graph.recorder:
        yield
    with torch.no_grad():
        for tensor, values in reversed(cuda_graph.recorder.before):
            tensor.data.copy_(values)


def make_graphed_callables(module, sample_args):
    return module


def _memory_skip(*args, **kwargs):
    pytest.skip("the stand-in for CUDA has no memory figures")


def _item(tensor):
    if torch.cuda.get_sync_debug_mode():
        raise RuntimeError("called a synchronizing CUDA operation")
    return _real_item(tensor)


_real_item = torch.Tensor.item
_mode = {"sync": 0}


def _set_sync(mode):
    _mode["sync"] = {"default": 0, "warn": 1, "error": 2}.get(mode, mode)


def nothing(*args, **kwargs):
    pass


def install():
    """Puts the stand-ins into torch.cuda and makes torch_ext say that it was built for CUDA."""
    cuda = torch.cuda
    replaced = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "synchronize": nothing,
        "empty_cache": nothing,
        "_sleep": nothing,
        "_lazy_init": nothing,
        "Stream": Stream,
        "Event": Event,
        "stream": lambda stream: contextlib.nullcontext(stream),
        "device": lambda device: contextlib.nullcontext(device),
        "current_stream": lambda device=None: Stream(),
        "CUDAGraph": CUDAGraph,
        "graph": graph,
        "make_graphed_callables": make_graphed_callables,
        "set_sync_debug_mode": _set_sync,
        "get_sync_debug_mode": lambda: _mode["sync"],
        "mem_get_info": lambda device=None: (1 << 40, 1 << 40),
        "memory_allocated": _memory_skip,
        "reset_peak_memory_stats": _memory_skip,
        "memory_reserved": _memory_skip,
    }
    for name, stand_in in replaced.items():
        assert hasattr(cuda, name), f"torch.cuda has no {name}"
        setattr(cuda, name, stand_in)
    torch.Tensor.item = functools.wraps(_real_item)(_item)

    import torch_ext

    built = torch_ext.build_info()
    torch_ext.build_info = lambda: {**built, "cuda": built["cuda"] or "13.0"}


install()
os.environ.setdefault("TORCH_EXT_GPU_REHEARSAL", "1")


@pytest.fixture(autouse=True)
def _pretend_cuda():
    with PretendCuda():
        yield


# What it cannot do: modes belong to one thread, copies inside gradcheck and the operators' own
# checks do not see it, and torch asks a GPU that is not there.
_BEYOND_IT = (
    *("eight_threads_do_not_disturb", "finite_differences"),
    *("cpu_and_cuda_tensors_do_not_mix", "holds_in_every_thread"),
)


def pytest_collection_modifyitems(config, items):
    """A rehearsal takes few of the parameters of each test, spread over their list."""
    for item in items:
        if any(name in item.name for name in _BEYOND_IT):
            item.add_marker(pytest.mark.skip(reason="beyond the stand-in for CUDA"))
    each = int(os.environ.get("TORCH_EXT_REHEARSE_EACH", "0"))
    functions = {}
    for item in items:
        functions.setdefault((item.fspath, getattr(item, "originalname", item.name)), []).append(
            item
        )
    if each:
        kept = {id(item) for some in functions.values() for item in some[:: -(-len(some) // each)]}
        config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
        items[:] = [item for item in items if id(item) in kept]
