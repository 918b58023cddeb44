"""The stages of a session as data: what each proves, its command and its time limit.

In the order in which they run: what matters most comes first, so that a session that ends early has
found it. Limits are for an H200 with 16 cores; all that a whole session needs is 10 minutes.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from gpu.results import ROOT

FIRST, SIDE = "first", "side"  # lanes
CORE = (
    *("battery_values", "battery_sums", "battery_layouts", "battery_autograd"),
    *("battery_state", "battery_threads", "battery_errors"),
)


@dataclass(frozen=True)
class Setting:
    """Where stages run, and with what."""

    rehearse: bool = False
    python: str = sys.executable
    workers: int = 1  # of pytest, where pytest-xdist is installed
    build: str = str(ROOT / "build" / "gpu")  # folder
    arch: str = ""  # compute capability, as TORCH_CUDA_ARCH_LIST has it

    @property
    def device(self):
        return "cpu" if self.rehearse else "cuda"


@dataclass(frozen=True)
class Stage:
    name: str
    proves: str
    limit: float  # seconds
    command: Callable[[Setting], list[str]]
    needs: tuple[str, ...] = ()  # Python modules
    environment: Callable[[Setting], dict[str, str]] = field(default=lambda setting: {})
    needs_build: bool = True
    correctness: bool = True
    tells_outcomes: bool = True  # else its exit status is its one outcome
    lane: str = ""  # neighbours of one lane run side by side: none of them measures time


def _script(*arguments):
    return lambda setting: [setting.python, *arguments, "--device", setting.device]


def _pytest(*files, parallel=True, select=""):
    """Files of tests/; on the device under test alone. In a rehearsal CUDA is the stand-in."""

    def command(setting):
        arguments = [setting.python, "-m", "pytest", "-q", "-p", "gpu.recorder"]
        arguments += ["-p", "no:cacheprovider", "--tb=short", "--maxfail=40"]
        if setting.rehearse:
            arguments += ["-p", "gpu.pretend"]
        if parallel and setting.workers > 1:
            arguments += ["-n", str(setting.workers), "--dist", "worksteal"]
        if select:
            arguments += ["-k", select]
        return arguments + list(files)

    return command


def _tests(*names):
    return [f"tests/test_{name}.py" for name in names]


def _pytest_environment(setting):
    # Threads that wait must not take cores from other workers; kernels are loaded when first used.
    rehearsal = {"TORCH_EXT_GPU_REHEARSAL": "1", "TORCH_EXT_REHEARSE_EACH": "2"}
    return (rehearsal if setting.rehearse else {}) | {
        "TORCH_EXT_TEST_DEVICES": "cuda",
        "OMP_WAIT_POLICY": "passive",
        "OMP_NUM_THREADS": "2",
    }


def _build(setting):
    arguments = ["--build", setting.build, "--device", setting.device]
    return [setting.python, "-m", "gpu.build", *arguments]


def _build_environment(setting):
    return {"TORCH_CUDA_ARCH_LIST": setting.arch or "9.0"}


def _rest(setting):
    """Every test file that no other stage runs, a file to a worker: tests of a file share fixtures.

    A rehearsal takes a few, on the CPU: the stand-in for CUDA does not reach into compilers and
    other processes.
    """
    run = {*CORE, *CUDA_FILES}
    names = sorted(path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py"))
    names = [name for name in names if name not in run]
    if setting.rehearse:
        names = ["layering", "replace", "battery_forward_mode"]
    command = _pytest(*_tests(*names))(setting)
    if setting.rehearse:
        at = command.index("gpu.pretend")
        del command[at - 1 : at + 1]
    return ["loadfile" if word == "worksteal" else word for word in command]


def _rest_environment(setting):
    variables = _pytest_environment(setting)
    return variables | ({"TORCH_EXT_TEST_DEVICES": "cpu"} if setting.rehearse else {})


CUDA_FILES = (
    "cuda_values",
    "cuda_layouts",
    "cuda_determinism",
    "cuda_graphs",
    "cuda_streams",
    "cuda_memory",
    "cuda_large",
)


def _suite(name, proves, limit, *files, lane="", **options):
    return Stage(
        name,
        proves,
        limit,
        _pytest(*_tests(*files), **options),
        needs=("pytest",),
        environment=_pytest_environment,
        lane=lane,
    )


def _sanitizer(tool, proves):
    return Stage(
        tool,
        proves,
        150,
        lambda setting: [
            *(setting.python, "-m", "gpu.sanitize", tool),
            *("--device", setting.device, "--arch", setting.arch),
        ],
        lane=SIDE,
    )


def _benchmark(name, proves, limit, cases):
    """It stops by itself before its limit, and says which cases it left out."""
    return Stage(
        name,
        proves,
        limit,
        _script("benchmarks/cuda_prelu.py", f"--set={cases}", f"--seconds={limit - 20:.0f}"),
        correctness=False,
        tells_outcomes=False,
    )


STAGES = (
    Stage(
        "machine",
        "what GPU, driver and tools are here",
        60,
        _script("-m", "gpu.machine"),
        needs_build=False,
        correctness=False,
        tells_outcomes=False,
    ),
    Stage(
        "build",
        "builds in an existing environment, without network",
        300,
        _build,
        environment=_build_environment,
        needs_build=False,
    ),
    Stage(
        "reduced",
        "one small problem of each kind, without pytest",
        90,
        _script("-m", "gpu.reduced"),
    ),
    _suite(
        "values",
        "bits of the CPU and of stock; special values",
        150,
        *("cuda_values", "battery_values", "battery_sums"),
        lane=FIRST,
    ),
    _suite(
        "layouts",
        "sizes, strides, misalignment, grid limits",
        150,
        *("cuda_layouts", "battery_layouts"),
        lane=FIRST,
    ),
    _suite(
        "determinism",
        "repeats beside a busy stream",
        150,
        *("cuda_determinism", "battery_threads"),
        lane=FIRST,
    ),
    _suite(
        "runtime",
        "graphs, streams, no synchronisation, memory",
        120,
        *("cuda_graphs", "cuda_streams", "cuda_memory"),
        parallel=False,  # memory is counted, streams are timed
    ),
    _suite("large", "more than 2^31 elements", 120, "cuda_large", parallel=False),
    _benchmark("bench-targets", "large and small rows against copy and stock", 120, "targets"),
    _sanitizer("memcheck", "no access out of bounds or misaligned"),
    _sanitizer("racecheck", "no race in shared memory"),
    _sanitizer("initcheck", "no read of memory that nobody wrote"),
    _sanitizer("synccheck", "no barrier that some threads miss"),
    _suite(
        "contract",
        "the contract's other files",
        200,
        *("battery_state", "battery_autograd", "battery_errors"),
        lane=SIDE,
    ),
    Stage(
        "cpp",
        "the C++ tests",
        150,
        lambda setting: [setting.python, "-m", "gpu.cpp", "--build", setting.build],
        correctness=False,
        lane=SIDE,
    ),
    Stage(
        "suite",
        "every other test file",
        400,
        _rest,
        needs=("pytest",),
        environment=_rest_environment,
        lane=SIDE,
    ),
    _benchmark("bench-compile", "steps against torch.compile", 150, "compile"),
    _benchmark("bench-core", "the core cases against copy and stock", 100, "core"),
)

BY_NAME = {stage.name: stage for stage in STAGES}
CORRECTNESS = tuple(stage.name for stage in STAGES if stage.correctness)

# Names for parts of a session.
GROUPS = {
    "all": tuple(BY_NAME),
    "quick": ("machine", "build", "reduced", "values", "determinism", "runtime", "bench-targets"),
    "facts": tuple(
        name for name in BY_NAME if name not in ("contract", "cpp", "suite", "bench-core")
    ),
    "correctness": ("machine", *CORRECTNESS),
    "sanitizers": ("machine", "build", "memcheck", "racecheck", "initcheck", "synccheck"),
    "bench": ("machine", "build", "bench-targets", "bench-compile", "bench-core"),
    "rest": ("machine", "build", "bench-core", "contract", "cpp", "suite"),
}


def chosen(words):
    """Stages for a comma-separated choice of names and groups, in their order.

    Raises ValueError for a word that is neither.
    """
    names = set()
    for word in words.split(","):
        if word not in GROUPS and word not in BY_NAME:
            raise ValueError(
                f"no stage or group {word!r}; there are {', '.join([*GROUPS, *BY_NAME])}"
            )
        names.update(GROUPS.get(word, (word,)))
    return [stage for stage in STAGES if stage.name in names]
