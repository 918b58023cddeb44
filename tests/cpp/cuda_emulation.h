// Runs CUDA kernels on the CPU: one std::thread for each thread of a block, blocks one after the
// other. Include it before a kernel's header, in a file that a plain host compiler compiles. It
// shows wrong indices, tails, barriers and orders, and lets the sanitizers watch; it cannot show
// what needs a GPU: fences between blocks, divergence within warps, streams.
#pragma once

#include <barrier>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __shared__ static  // blocks run one after the other
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace cuda_emulation {

struct Index {
  unsigned x = 0;
};

inline thread_local Index thread_index;
inline thread_local Index block_index;
inline Index block_size;
inline Index grid_size;
inline std::unique_ptr<std::barrier<>> barrier;

inline void check_alignment(const void* address) {
  if (reinterpret_cast<uintptr_t>(address) % 16 != 0) {
    std::fprintf(stderr, "misaligned 128-bit access\n");
    std::abort();
  }
}

template <typename... Parameters, typename... Arguments>
void launch(
    void (*kernel)(Parameters...), int64_t grid, int threads, const Arguments&... arguments) {
  grid_size.x = static_cast<unsigned>(grid);
  block_size.x = static_cast<unsigned>(threads);
  barrier = std::make_unique<std::barrier<>>(threads);
  std::vector<std::jthread> block;
  for (int thread = 0; thread < threads; ++thread) {
    block.emplace_back([&, thread] {
      thread_index.x = static_cast<unsigned>(thread);
      for (block_index.x = 0; block_index.x < grid_size.x; ++block_index.x) {
        kernel(arguments...);
        barrier->arrive_and_wait();
      }
    });
  }
}

}  // namespace cuda_emulation

#define threadIdx cuda_emulation::thread_index
#define blockIdx cuda_emulation::block_index
#define blockDim cuda_emulation::block_size
#define gridDim cuda_emulation::grid_size

struct uint4 {
  unsigned x, y, z, w;
};

inline void __syncthreads() {
  cuda_emulation::barrier->arrive_and_wait();
}

namespace torch_ext::cuda {

inline uint4 load_128(const void* source) {
  cuda_emulation::check_alignment(source);
  uint4 value;
  std::memcpy(&value, source, sizeof(value));
  return value;
}

inline void store_128(void* target, uint4 value) {
  cuda_emulation::check_alignment(target);
  std::memcpy(target, &value, sizeof(value));
}

}  // namespace torch_ext::cuda
