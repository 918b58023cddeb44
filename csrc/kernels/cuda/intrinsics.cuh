// The instructions that the kernels use by name. A host compiler gets replacements from
// tests/cpp/cuda_emulation.h.
#pragma once

#if defined(__CUDACC__)

#include <cooperative_groups.h>

namespace torch_ext::cuda {

// Ordinary 128-bit accesses of global memory. In assembly, because the compiler split some
// assignments into single elements; volatile, because loads should stay ahead of the arithmetic.
// The addresses are multiples of 16. (__ldca and __stwb do the same with a memory order that is not
// needed here.)
__device__ __forceinline__ uint4 load_128(const void* source) {
  uint4 value;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(source));
  return value;
}

__device__ __forceinline__ void store_128(void* target, uint4 value) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(target), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
               : "memory");
}

// The shared memory of a block, as a T; every call in a kernel returns the same memory.
template <typename T>
__device__ __forceinline__ T& shared_memory() {
  __shared__ T memory;
  return memory;
}

// Clusters: blocks that run at the same time and see each other's shared memory (compute capability
// 9.0 and newer). No launch plan uses them with code for older GPUs. Such code would not wait, and
// would add up only a part of the sums; it ends the kernel with an error instead.
__device__ __forceinline__ int cluster_blocks() {
#if __CUDA_ARCH__ >= 900
  return static_cast<int>(cooperative_groups::this_cluster().num_blocks());
#else
  return 1;
#endif
}

__device__ __forceinline__ int cluster_rank() {
#if __CUDA_ARCH__ >= 900
  return static_cast<int>(cooperative_groups::this_cluster().block_rank());
#else
  return 0;
#endif
}

// A barrier for all threads of all blocks of the cluster. What they wrote before it, also in shared
// memory, is visible after it.
__device__ __forceinline__ void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  cooperative_groups::this_cluster().sync();
#else
  __trap();
#endif
}

// shared_memory<T>() of the cluster's block of this rank.
template <typename T>
__device__ __forceinline__ const T& shared_memory_of([[maybe_unused]] int rank) {
#if __CUDA_ARCH__ >= 900
  return *cooperative_groups::this_cluster().map_shared_rank(&shared_memory<T>(), rank);
#else
  return shared_memory<T>();
#endif
}

}  // namespace torch_ext::cuda

#endif
