"""The operator library as the linker and the loader see it: what it needs, shows, keeps and allows."""

import json
import re
from pathlib import Path

import pytest
import torch
from installed import LIBRARY, PACKAGE, REPOSITORY, openmp_runtimes, output_of, run_python, tool

import torch_ext

contract = pytest.mark.contract

MODULE = Path(torch_ext._C.__file__)
IN_PLACE = PACKAGE.parent == REPOSITORY
CUDA_BUILD = torch_ext.build_info()["cuda"] is not None

both_files = pytest.mark.parametrize("path", [LIBRARY, MODULE], ids=["library", "module"])


def readelf(option, path):
    return output_of(tool("readelf"), "-W", option, path)


def dynamic_entries(path, tag):
    return re.findall(rf"\({tag}\).*\[(.*)\]", readelf("-d", path))


def symbols(path, *options):
    """Triples of address, kind and C++ name."""
    lines = output_of(tool("nm"), "-C", *options, path).splitlines()
    return [
        (int(a, 16), kind, name) for a, kind, name in (line.split(maxsplit=2) for line in lines)
    ]


# ---- What it needs -----------------------------------------------------------------------------


@contract
def test_the_operator_library_has_no_python_in_it():
    needed = dynamic_entries(LIBRARY, "NEEDED")
    assert "libtorch_cpu.so" in needed
    assert not [name for name in needed if "python" in name]


@contract
@pytest.mark.skipif(CUDA_BUILD, reason="a CUDA build needs CUDA")
def test_a_cpu_build_needs_no_cuda():
    needed = dynamic_entries(LIBRARY, "NEEDED")
    assert not [name for name in needed if "cuda" in name or name == "libtorch.so"]


@pytest.mark.skipif(not CUDA_BUILD, reason="built without CUDA")
def test_a_cuda_build_needs_the_runtime_but_no_driver():
    """So that it can be imported where there is no GPU."""
    needed = dynamic_entries(LIBRARY, "NEEDED")
    assert "libtorch_cuda.so" in needed
    assert f"libcudart.so.{torch_ext.build_info()['cuda'].split('.')[0]}" in needed
    assert not [name for name in needed if name.startswith("libcuda.so")]


@contract
def test_the_library_loads_by_itself_without_python():
    """By a plain dlopen, before torch: it finds torch's libraries by its own RPATH."""
    mapped = run_python(
        f"import ctypes; ctypes.CDLL({str(LIBRARY)!r})\nprint(open('/proc/self/maps').read())"
    ).stdout
    assert "libtorch_cpu.so" in mapped
    assert "libtorch_python" not in mapped


@contract
def test_it_finds_its_libraries_relative_to_itself():
    """Built in place, it lies outside site-packages and remembers where torch is; nothing else."""
    torch_libraries = str(Path(torch.__file__).parent / "lib")
    allowed = {torch_libraries} if IN_PLACE else set()
    for path in (LIBRARY, MODULE):
        [search] = dynamic_entries(path, "RUNPATH")
        folders = search.split(":")
        assert "$ORIGIN" in folders[0]
        assert {folder for folder in folders if not folder.startswith("$ORIGIN")} <= allowed


MAPPED = """
import ctypes, json
for path in {first}: ctypes.CDLL(path)
import torch, torch_ext
torch_ext.prelu(torch.randn(64, 16, 64, 64), torch.ones(16))
print(json.dumps([line.split()[-1] for line in open("/proc/self/maps") if "/" in line]))
"""


@contract
@pytest.mark.parametrize("first", [[], [str(LIBRARY)]], ids=["after_torch", "before_torch"])
def test_it_shares_torchs_openmp_runtime(first):
    """Of two runtimes in one process each would start threads of its own."""
    [runtime] = openmp_runtimes(json.loads(run_python(MAPPED.format(first=first)).stdout))
    assert Path(runtime).is_relative_to(Path(torch.__file__).parent)


# ---- What it shows -----------------------------------------------------------------------------


def test_the_library_shows_the_symbols_of_torch_ext_only():
    names = [name for _, _, name in symbols(LIBRARY, "-D", "--defined-only")]
    assert "torch_ext::version()" in names
    assert [name for name in names if not name.startswith("torch_ext::")] == []


def test_the_module_shows_one_function_its_entry():
    functions = [name for _, kind, name in symbols(MODULE, "-D", "--defined-only") if kind == "T"]
    assert functions == ["PyInit__C"]


SOURCE_PATH = re.compile(rb"(?<![\w./-])(?:/[\w.+-]+)+\.(?:h|hpp|cuh|cpp|cc|cu)\b")


@both_files
def test_no_path_of_the_machine_that_built_it_is_inside(path):
    """In messages: sources of ours and headers of torch are named from their roots."""
    content = path.read_bytes()
    assert set(SOURCE_PATH.findall(content)) == set()
    if path == LIBRARY:
        assert b"\0c10/core/" in content, "torch's headers are named in no message any more"
    assert SOURCE_PATH.findall(b"\0/home/user/csrc/ops/prelu.cpp\0") != []


# ---- What it keeps -----------------------------------------------------------------------------

# All that lives in writable memory as long as the process does, and why that is no danger to
# threads, streams and devices. Each is set once, under a guard or while the library is loaded,
# except those that are atomic.
STATE = {
    r"torch_ext::knobs\(\)::instance": "switches of the whole process, by purpose; atomic",
    r"torch_ext::\(anonymous namespace\)::open_overrides\(\)::count": "likewise, a count",
    r"torch_ext::(prelu(_backward)?|(batch|instance)_norm_prelu|norm_prelu(_eval|_backward)?)\(.*\)::op": (
        "const: the dispatcher's handle"
    ),
    r"torch_ext::cpu::instruction_set_in_use\(\)::chosen": "const: for this processor",
    r"torch_ext::cpu::tuning_in_use\(\)::cache": "const: of this processor",
    r"torch_ext::enter_override_aten\(\)::(ours|library)": "made by the first override, then const",
    r"torch_ext::TORCH_LIBRARY_\w+": "registrations, taken back when the library is unloaded",
}
if CUDA_BUILD:
    STATE[r"torch_ext::cuda::current_gpu\(.*\)::(asked|answers)"] = (
        "what the driver says of each device, the same whoever asks; asked once, under a flag"
    )
OF_OTHERS = (
    r"(c10|at|torch|std)::.*",  # what headers bring along
    r"DW\.ref\..*|__dso_handle|__TMC_END__|completed\.0|_edata|__bss_start|_end",  # the compiler's
    r"__device_stub__.*|__cudaFatCubinHandle|__fatDeviceText|__nv_\w+",  # nvcc's
)


def writable_symbols(path):
    """Names of variables outside the part that the loader protects once it has filled it in."""
    [(start, size)] = re.findall(r"GNU_RELRO +\S+ (\S+) \S+ \S+ (\S+)", readelf("-l", path))
    protected = range(int(start, 16), int(start, 16) + int(size, 16))
    return {
        name.removeprefix("guard variable for ")
        for address, kind, name in symbols(path, "--defined-only")
        if kind in "bBdDuVsSgG" and (address not in protected)
    }


def test_it_keeps_no_state_but_this():
    names = writable_symbols(LIBRARY)
    if not names:
        pytest.skip("the library was stripped of its symbols")
    known = "|".join([*STATE, *OF_OTHERS])
    assert [name for name in names if not re.fullmatch(known, name)] == []
    unused = [entry for entry in STATE if not any(re.fullmatch(entry, name) for name in names)]
    assert unused == [], "explained, but not there"


# ---- What it allows an attacker ----------------------------------------------------------------


@both_files
def test_the_loader_resolves_all_symbols_at_once_and_protects_their_table(path):
    assert "GNU_RELRO" in readelf("-l", path)
    assert "BIND_NOW" in readelf("-d", path)


@both_files
def test_no_memory_is_writable_and_executable(path):
    segments = re.findall(
        r"^ +(\w+) +0x\w+ 0x\w+ 0x\w+ 0x\w+ 0x\w+ (.{3})", readelf("-l", path), re.MULTILINE
    )
    flags = dict(segments)
    assert flags["GNU_STACK"] == "RW "
    assert [name for name, flag in segments if "W" in flag and "E" in flag] == []
    assert [name for name, flag in segments if "E" in flag] == ["LOAD"]
    assert "TEXTREL" not in readelf("-d", path)


@both_files
def test_overwritten_stacks_are_noticed(path):
    assert "__stack_chk_fail" in output_of(tool("nm"), "-D", "--undefined-only", path)
