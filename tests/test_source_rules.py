"""Rules that a reader of csrc/ and of the build files could check, and that are cheaper checked here:
how kernels are launched, and with what arithmetic everything is compiled."""

import json
import os
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
CSRC = REPOSITORY / "csrc"

LAUNCH = re.compile(r"<<<|\bcu(?:da)?Launch\w*Kernel\w*\s*\(")
STREAM = re.compile(r"\bgetCurrentCUDAStream\(")
CHECK = re.compile(r"\bC10_CUDA_(?:KERNEL_LAUNCH_)?CHECK\b")
REGISTRATION = re.compile(r"\bm\.impl\([^;]*?, (\w+)<Engine>\);")
# Each makes the caller wait for the GPU, or takes memory past PyTorch's allocator.
WAITS = re.compile(
    r"\bcuda\w*Synchronize\b|\bcudaMem(?:cpy|set)\w*|\bcudaMalloc\w*|\bcudaFree\w*|\bcudaStreamLegacy\b"
    r"|\.item(?:<\w+>)?\(|\b(?:copy|to)_?\([^)]*kCPU"
)
# Arithmetic that is not IEEE's, or that is another one for the whole process.
INEXACT_FLAGS = re.compile(
    r"-Ofast|-f(?:fast-math|unsafe-math\S*|associative-math|finite-math\S*|reciprocal-math"
    r"|no-signed-zeros|cx-limited-range)|-ffp-(?:contract|model)=fast|-march=native|-mdaz-ftz"
    r"|use_fast_math|-ftz=true|-prec-(?:div|sqrt)=false"
)
INEXACT_CODE = re.compile(
    r"\b_mm_setcsr\b|\b_MM_SET_\w+|\bfeset\w+|(?i:\bset_?flush_?denormal)|\bpragma\s+(?:GCC|clang)\s+"
    r"(?:optimize|fp)\b|\bfloat_control\b|\bFP_CONTRACT\b|\boptimize\s*\(|\bfast_math\b"
)


def code(path):
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)


def sources(root, *suffixes):
    return sorted(path for path in root.rglob("*") if path.suffix in suffixes)


# ---- Launches ----------------------------------------------------------------------------------


def functions(text):
    """name -> body of each function of namespace scope; clang-format ends them with "}" alone.

    (Types end with "};", and count as one function, named as their first.)
    """
    found = {}
    for block in re.findall(r"^[^\s#}].*?^\};?$", text, re.DOTALL | re.MULTILINE):
        if match := re.search(r"(\w+)\(", block):
            found[match[1]] = found.get(match[1], "") + block[match.end() :]
    return found


def launch_faults(text):
    """What is wrong with the launches, guards and waits of one file."""
    faults = []
    bodies = functions(text)
    outside = len(LAUNCH.findall(text)) - sum(len(LAUNCH.findall(body)) for body in bodies.values())
    if outside:
        faults.append("a launch outside of functions")
    for name, body in bodies.items():
        launches = list(LAUNCH.finditer(body))
        if not launches:
            continue
        if not name.startswith("launch"):
            faults.append(f"{name} launches by itself")
        if len(STREAM.findall(body)) < len(launches):
            faults.append(f"{name} does not launch on the current stream")
        if len(CHECK.findall(body)) < len(launches):
            faults.append(f"{name} does not check its launch")
    for name in REGISTRATION.findall(text):
        if "DeviceGuard guard(" not in bodies.get(name, ""):
            faults.append(f"{name} does not switch to its tensors' device")
    return faults + [f"{found} waits" for found in WAITS.findall(text)]


def test_kernels_are_launched_by_one_helper_under_a_guard_on_the_current_stream_and_checked():
    files = {path: code(path) for path in sources(CSRC, ".cu", ".cuh", ".cpp", ".h")}
    launching = {path.name for path, text in files.items() if LAUNCH.search(text)}
    assert launching == {"launch.cuh"}
    for path, text in files.items():
        if path.suffix in (".cu", ".cuh") or path.stem.endswith("_cuda"):
            assert launch_faults(text) == [], path
    text = files[CSRC / "kernels/cuda/launch.cuh"]
    assert [name for name, body in functions(text).items() if LAUNCH.search(body)] == ["launch"]
    registered = files[CSRC / "ops/operators.h"]
    assert len(REGISTRATION.findall(registered)) == 5
    called = [text for path, text in files.items() if path.name.endswith("_run.h")]
    assert launch_faults("".join([registered, *called])) == []


HONEST = """
template <typename... A>
void launch(void (*kernel)(A...), int grid, const A&... a) {
  kernel<<<grid, 256, 0, c10::cuda::getCurrentCUDAStream()>>>(a...);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

at::Tensor prelu_on(const at::Tensor& input) {
  const c10::DeviceGuard guard(input.device());
  launch(kernel, 1, input);
  return input;
}

template <typename Engine>
void register_operators(torch::Library& m) {
  m.impl("prelu", prelu_on<Engine>);
}
"""
EXTENDED = HONEST.replace(
    "kernel<<<grid, 256, 0, c10::cuda::getCurrentCUDAStream()>>>(a...);\n"
    "  C10_CUDA_KERNEL_LAUNCH_CHECK();",
    "config.stream = c10::cuda::getCurrentCUDAStream();\n"
    "  C10_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, a...));",
)
FAULTS = {
    "default_stream": (", 0, c10::cuda::getCurrentCUDAStream()", "", "current stream"),
    "unchecked": ("  C10_CUDA_KERNEL_LAUNCH_CHECK();\n", "", "check"),
    "own_launch": ("launch(kernel, 1, input)", "kernel<<<1, 1>>>(input)", "by itself"),
    "no_guard": ("  const c10::DeviceGuard guard(input.device());\n", "", "device"),
    "unnamed_guard": ("DeviceGuard guard(", "DeviceGuard(", "device"),
    "waits": ("return input;", "cudaDeviceSynchronize();\n  return input;", "waits"),
    "copies": ("return input;", "input.item<float>();\n  return input;", "waits"),
    "allocates": ("return input;", "cudaMalloc(&p, 4);\n  return input;", "waits"),
}


@pytest.mark.parametrize("text", [HONEST, EXTENDED], ids=["brackets", "launch_attributes"])
def test_honest_launches_are_accepted(text):
    assert "<<<" in HONEST and "cudaLaunchKernelEx" in EXTENDED
    assert launch_faults(text) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_launch_fault_is_found(fault):
    old, new, said = FAULTS[fault]
    assert HONEST.count(old) == 1
    assert said in " ".join(launch_faults(HONEST.replace(old, new)))


def test_a_planted_launch_without_a_check_of_its_result_is_found():
    planted = EXTENDED.replace("C10_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, a...))", "{}")
    planted = planted.replace("{};", "cudaLaunchKernelEx(&config, kernel, a...);")
    assert "does not check its launch" in " ".join(launch_faults(planted))


# ---- Arithmetic --------------------------------------------------------------------------------


def compile_commands():
    """Of this build; the Makefile says where it is."""
    path = Path(os.environ.get("TORCH_EXT_BUILD_DIR", "no folder")) / "compile_commands.json"
    if not path.exists():
        pytest.skip("no compile_commands.json: run by `make pytest`, or set TORCH_EXT_BUILD_DIR")
    return {entry["output"]: entry["command"] for entry in json.loads(path.read_text())}


def test_everything_is_compiled_with_ieee_arithmetic():
    commands = compile_commands()
    assert [command for command in commands.values() if INEXACT_FLAGS.search(command)] == []
    kernels = [command for command in commands.values() if "-DCPU_CAPABILITY=" in command]
    assert kernels
    for command in kernels:
        assert "-ffp-contract=off" in command
    for command in commands.values():
        assert ("-fmad=false" in command) == (".cu.o" in command), command


def test_what_is_not_a_kernel_is_compiled_with_hardening():
    if "-fsanitize" in str(compile_commands()):
        pytest.skip("sanitizers see more")
    operators = [
        command
        for output, command in compile_commands().items()
        if "torch_ext.dir/" in output and "prelu.cpp" in output or "unity_prelu" in output
    ]
    assert operators
    for command in operators:
        assert "-fstack-protector-strong" in command and "-D_FORTIFY_SOURCE=3" in command


def test_no_build_file_and_no_source_asks_for_other_arithmetic():
    build = [REPOSITORY / "CMakeLists.txt", REPOSITORY / "setup.py", REPOSITORY / "Makefile"]
    build += sources(REPOSITORY / "cmake", ".cmake", ".in") + [
        REPOSITORY / "tests/cpp/CMakeLists.txt"
    ]
    assert [path for path in build if INEXACT_FLAGS.search(path.read_text())] == []
    csrc = sources(CSRC, ".cpp", ".h", ".cu", ".cuh")
    assert csrc and [path for path in csrc if INEXACT_CODE.search(code(path))] == []


@pytest.mark.parametrize(
    "text",
    [
        "g++ -O3 -ffast-math",
        "g++ -Ofast",
        "nvcc --use_fast_math",
        "nvcc -ftz=true",
        "-march=native",
    ],
)
def test_a_planted_flag_is_found(text):
    assert INEXACT_FLAGS.search(text)


@pytest.mark.parametrize(
    "text",
    [
        "_MM_SET_FLUSH_ZERO_MODE(_MM_FLUSH_ZERO_ON);",
        "_mm_setcsr(_mm_getcsr() | 0x8040);",
        "std::fesetround(FE_UPWARD);",
        "at::globalContext().setFlushDenormal(true);",
        '#pragma GCC optimize("fast-math")',
        '__attribute__((optimize("fast-math"))) void f();',
    ],
)
def test_planted_code_is_found(text):
    assert INEXACT_CODE.search(text)
