"""What nvcc made of the CUDA kernels, in the library as it was built: needs no GPU."""

import re
from pathlib import Path

import cuda_machine_code as machine_code
import pytest
import torch
from installed import LIBRARY, REPOSITORY, output_of

import torch_ext

in_the_library = pytest.mark.skipif(
    torch_ext.build_info()["cuda"] is None, reason="this torch_ext was built without CUDA"
)

WIDE_LOAD = r"LDG\..*\b128"
WIDE_STORE = r"STG\..*\b128"
# Arithmetic on floats that takes denormals for zero. (Integer divisions convert with such a mode.)
FLUSHES = r"(F(ADD|MUL|FMA|SET|SETP|MNMX|SEL|CHK)|H(ADD|MUL|FMA)2)\w*\..*\bFTZ"


@pytest.fixture(scope="module")
def kernels():
    return machine_code.kernels_of(LIBRARY)


@pytest.fixture(scope="module")
def ptx():
    return machine_code.cuobjdump("-ptx", LIBRARY)


def architectures():
    """Those that were asked for: with machine code, and with PTX."""
    wanted = torch_ext.build_info()["archs"]
    names = ["sm_" + arch.removesuffix("+PTX").replace(".", "") for arch in wanted]
    return names, [name for name, arch in zip(names, wanted, strict=True) if "+PTX" in arch]


# ---- What is there -----------------------------------------------------------------------------


@in_the_library
def test_every_architecture_that_was_asked_for_is_there():
    machine_codes, ptx = machine_code.embedded(LIBRARY)
    wanted, wanted_ptx = architectures()
    sources = len(list((REPOSITORY / "csrc" / "kernels" / "cuda").glob("*.cu")))
    assert sorted(machine_codes) == sorted(wanted * sources)
    assert sorted(ptx) == sorted(wanted_ptx * sources)


WITH_SUMS = ("PreluBackward", "Moments", "WithoutOutputs<NormPreluReduce>", "NormPreluReduce")
WITHOUT_OUTPUT = ("Moments", "WithoutOutputs<NormPreluReduce>")
NORM_PRELU = (
    *("Moments", "NormPreluForward", "WithoutOutputs<NormPreluReduce>", "NormPreluReduce"),
    *("WithoutSums<NormPreluReduce>", "NormPreluApply"),
)
OPERATIONS = ("PreluForward", "PreluBackward", "WithoutSums<PreluBackward>", *NORM_PRELU)


def operation_of(kernel):
    """Of a traversal, the first of its arguments."""
    return kernel.arguments[0] if kernel.name.startswith("run_") else None


@in_the_library
@pytest.mark.parametrize("element", machine_code.ELEMENT_TYPES)
def test_every_operation_has_its_kernels(kernels, element):
    for arch in architectures()[0]:
        found = {
            (kernel.name, *kernel.arguments[:2])
            for kernel in kernels
            if kernel.arch == arch and kernel.element_type == element
        }
        for operation in OPERATIONS:
            for shifted in ("false", "true"):
                assert ("run_planes", operation, shifted) in found
                assert ("run_columns", operation, shifted) in found
        assert "finish_sums" in {name for name, *_ in found}


@in_the_library
def test_no_kernel_is_there_that_nobody_needs(kernels):
    """Four types, nine operations, two traversals, shifted or not; those that finish the sums of
    three steps, and that add doubles; two that come before operations."""
    for arch in architectures()[0]:
        of_arch = [kernel for kernel in kernels if kernel.arch == arch]
        assert sum(kernel.name.startswith("run_") for kernel in of_arch) == 4 * 9 * 2 * 2
        # (What adds doubles is what finishes sums of float64.)
        assert sum(kernel.name == "finish_sums" for kernel in of_arch) == 4 * 3 + 3
        assert sum(kernel.name == "for_each" for kernel in of_arch) == 4 * 2
        assert len(of_arch) == 4 * 9 * 2 * 2 + 15 + 8


# ---- What it is made of ------------------------------------------------------------------------


@in_the_library
def test_no_sum_depends_on_the_order_of_threads(kernels, ptx):
    """No atomic operation on floating-point numbers, in machine code or in PTX."""
    assert kernels
    atomics = {str(kernel): machine_code.float_atomics(kernel) for kernel in kernels}
    assert {kernel: names for kernel, names in atomics.items() if names} == {}
    assert (".entry" in ptx) == bool(architectures()[1])
    assert machine_code.float_atomics_of_ptx(ptx) == []


@in_the_library
def test_everything_fits_into_registers(kernels):
    """No spills and no arrays in local memory, which is as far away as global memory."""
    for kernel in kernels:
        assert (kernel.stack, kernel.local) == (0, 0), str(kernel)
        assert machine_code.local_memory(kernel) == [], str(kernel)


@in_the_library
def test_denormals_are_kept(kernels, ptx):
    for kernel in kernels:
        assert kernel.count(r"F(MUL|SEL|SETP|FMA)|D(MUL|SETP|ADD)|HMUL2|[FD]ADD") > 0, str(kernel)
        assert kernel.count(FLUSHES) == 0, str(kernel)
    assert not re.search(r"\b(add|mul|fma|sub|setp)\.[\w.]*ftz", ptx)


@in_the_library
def test_products_are_fused_into_sums_and_nowhere_else(kernels):
    """Outputs are rounded as written, whatever the compiler could contract. (Norm + PReLU is written
    with fused ones; divisions of its steps consist of them.)"""
    for kernel in kernels:
        if operation_of(kernel) in ("PreluForward", "WithoutSums<PreluBackward>"):
            assert kernel.count(r"[FD]FMA") == 0, str(kernel)
        elif operation_of(kernel):
            assert kernel.count(r"[FD]FMA") > 0, str(kernel)


@in_the_library
def test_every_traversal_keeps_four_wide_loads_in_flight(kernels):
    """128 bits each, all of them ahead of the first wide store; results leave as wide."""
    traversals = [kernel for kernel in kernels if kernel.name.startswith("run_")]
    assert traversals
    for kernel in traversals:
        instructions = kernel.instructions
        if operation_of(kernel) in WITHOUT_OUTPUT:
            assert kernel.count(WIDE_LOAD) >= 4 and kernel.count(WIDE_STORE) == 0, str(kernel)
            continue
        stores = [i for i, name in enumerate(instructions) if re.match(WIDE_STORE, name)]
        assert len(stores) >= 2, str(kernel)
        ahead = sum(bool(re.match(WIDE_LOAD, name)) for name in instructions[: stores[0]])
        assert ahead >= 4, str(kernel)


@in_the_library
def test_code_without_clusters_ends_with_an_error_where_one_is_launched(kernels):
    """It would add up a part of the sums; the launch plan is right about the device, or nothing is."""
    sums = [kernel for kernel in kernels if operation_of(kernel) in WITH_SUMS]
    assert sums
    for kernel in sums:
        has_clusters = int(re.match(r"sm_(\d+)", kernel.arch)[1]) >= 90
        assert (kernel.count(r"UCGABAR") > 0) == has_clusters, str(kernel)
        assert (kernel.count(r"BPT\.TRAP") > 0) == (not has_clusters), str(kernel)


@in_the_library
def test_no_kernel_takes_more_registers_than_its_family_may(kernels):
    allowed = machine_code.read_table()
    used = machine_code.register_use(kernels)
    assert set(used) == set(allowed), "print the table anew: python tests/cuda_machine_code.py"
    over = {
        f"{family} on {arch}": f"{registers} > {allowed[family][arch]}"
        for family, row in used.items()
        for arch, registers in row.items()
        if registers > allowed[family].get(arch, registers)
    }
    assert over == {}
    known = set.union(*(set(row) for row in allowed.values()))
    if not known & set(architectures()[0]):
        pytest.skip("the table has none of the architectures that were built")


# ---- What these tests would see ----------------------------------------------------------------

PLANTED = r"""
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

extern "C" {
__global__ void bad_red_f32(float* x) { atomicAdd(x, 1.f); }
__global__ void bad_atom_f32(float* x) { x[1] = atomicAdd(x, 1.f); }
__global__ void bad_red_f64(double* x) { atomicAdd(x, 1.0); }
__global__ void bad_atom_f16(__half2* x) { x[1] = atomicAdd(x, x[2]); }
__global__ void bad_atom_bf16(__nv_bfloat162* x) { x[1] = atomicAdd(x, x[2]); }
__global__ void bad_red_bf16(__nv_bfloat16* x) { atomicAdd(x, x[2]); }
__global__ void bad_shared_f32(float* x) {
  __shared__ float sum;
  if (threadIdx.x == 0) sum = 0;
  __syncthreads();
  atomicAdd(&sum, x[threadIdx.x]);
  __syncthreads();
  x[threadIdx.x] = sum;
}
__global__ void good_integers(int* x) {
  atomicAdd(x, 1);
  x[1] = atomicMax(x + 2, 3) + __reduce_add_sync(~0u, x[4]);
}
__global__ void good_cluster(float* x) {
  __shared__ float part;
  auto cluster = cooperative_groups::this_cluster();
  if (threadIdx.x == 0) part = x[blockIdx.x];
  cluster.sync();
  if (cluster.block_rank() == 0) x[threadIdx.x] = *cluster.map_shared_rank(&part, threadIdx.x);
  cluster.sync();
}
__global__ void local_memory(int* x) {
  int values[64];
  for (int i = 0; i < 64; ++i) values[i] = x[i];
  for (int i = 0; i < 64; ++i) x[i] = values[x[i] & 63];
}
__global__ void flushing(float* x) { asm("mul.ftz.f32 %0, %0, %0;" : "+f"(*x)); }
}
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Kernels with and without faults: by name, and their PTX."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "planted.cu").write_text(PLANTED)
    binary = folder / "planted.fatbin"
    output_of(
        *(machine_code.cuda_tool("nvcc"), "-fatbin", "-std=c++17", folder / "planted.cu"),
        *("-gencode", "arch=compute_90,code=[sm_90,compute_90]", "-o", binary),
    )
    kernels = {kernel.name: kernel for kernel in machine_code.kernels_of(binary)}
    entries = re.split(r"\.entry (\w+)", machine_code.cuobjdump("-ptx", binary))
    return kernels, dict(zip(entries[1::2], entries[2::2], strict=True))


def test_planted_atomics_are_found_and_nothing_else(planted):
    kernels, ptx = planted
    assert len(kernels) == len(ptx) == PLANTED.count("__global__")
    bad = {name for name in kernels if name.startswith("bad_")}
    assert {name for name in kernels if machine_code.float_atomics(kernels[name])} == bad
    assert {name for name in ptx if machine_code.float_atomics_of_ptx(ptx[name])} == bad


def test_planted_local_memory_and_flushing_are_found(planted):
    kernels, _ = planted
    local = {name for name, kernel in kernels.items() if machine_code.local_memory(kernel)}
    stack = {name for name, kernel in kernels.items() if kernel.stack > 0}
    assert local == stack == {"local_memory"}
    assert {name for name in kernels if kernels[name].count(FLUSHES)} == {"flushing"}


# ---- Any operation -------------------------------------------------------------------------------

# Two inputs, an output, six params, three sums: as many as the engine promises to take.
EVERYTHING = r"""
#include <c10/util/BFloat16.h>
#include "kernels/cuda/run.cuh"
#include "kernels/step.h"
#include "operations.h"

namespace torch_ext::cuda {
using testing_operations::Everything;

template <typename scalar_t>
void run_everything(const LaunchPlan& plan, const Operands<Everything, scalar_t>& data) {
  run_plan(Work{}, plan, data, StoreSums<scalar_t, Everything::kSums>{}, [](const auto&...) {});
}
template void run_everything(const LaunchPlan&, const Operands<Everything, double>&);
template void run_everything(const LaunchPlan&, const Operands<Everything, c10::BFloat16>&);
}  // namespace torch_ext::cuda
"""


def test_an_operation_of_the_promised_counts_fits_into_registers(tmp_path):
    (tmp_path / "everything.cu").write_text(EVERYTHING)
    includes = [
        REPOSITORY / "csrc",
        REPOSITORY / "tests/cpp",
        Path(torch.__file__).parent / "include",
    ]
    binary = tmp_path / "everything.fatbin"
    output_of(
        *(machine_code.cuda_tool("nvcc"), "-fatbin", "-std=c++20", tmp_path / "everything.cu"),
        *("--expt-relaxed-constexpr", "-fmad=false", "-arch=sm_90", "-o", binary),
        *(f"-I{folder}" for folder in includes),
    )
    kernels = machine_code.kernels_of(binary)
    assert len(kernels) == 2 * (2 * 2 + 1)
    for kernel in kernels:
        assert (kernel.stack, kernel.local) == (0, 0), str(kernel)


# ---- The table of registers ---------------------------------------------------------------------


def test_a_table_is_read_as_it_was_written(tmp_path):
    use = {"run<A<true>,false>": {"sm_90": 57, "sm_100": 64}, "sum": {"sm_90": 8, "sm_100": 9}}
    path = tmp_path / "table.txt"
    path.write_text(f"{machine_code.HEADER}\n{machine_code.table(use)}\n")
    assert machine_code.read_table(path) == {
        "run<A<true>,false>": {"sm_90": 64, "sm_100": 64},
        "sum": {"sm_90": 8, "sm_100": 16},
    }
