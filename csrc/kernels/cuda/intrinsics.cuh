// The instructions that the kernels name themselves. A host compiler takes their stand-ins from
// tests/cpp/cuda_emulation.h.
#pragma once

#if defined(__CUDACC__)

namespace torch_ext::cuda {

// Ordinary 128-bit accesses of global memory. In assembly, because assignments were compiled to
// single elements in places; volatile, because loads are meant to stay ahead of the arithmetic. The
// addresses are multiples of 16. (__ldca and __stwb do the same with a memory order that nobody
// needs.)
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

}  // namespace torch_ext::cuda

#endif
