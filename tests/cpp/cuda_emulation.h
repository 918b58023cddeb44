// Runs CUDA kernels on the CPU: one std::thread for each thread of a block; the blocks of a cluster
// at once, others one after the other. Include it before a kernel's header, in a file that a plain
// host compiler compiles. It shows wrong indices, tails, barriers and orders, and lets the
// sanitizers watch; it cannot show what needs a GPU: fences between blocks, divergence within
// warps, streams.
#pragma once

#include <array>
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
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace cuda_emulation {

inline constexpr int kMaxCluster = 8;

struct Index {
  unsigned x = 0;
};

inline thread_local Index thread_index;
inline thread_local Index block_index;
inline thread_local int rank;  // of the block in its cluster
inline Index block_size;
inline Index grid_size;
inline int cluster_size;
inline std::array<std::unique_ptr<std::barrier<>>, kMaxCluster> block_barrier;
inline std::unique_ptr<std::barrier<>> cluster_barrier;

inline void check_alignment(const void* address) {
  if (reinterpret_cast<uintptr_t>(address) % 16 != 0) {
    std::fprintf(stderr, "misaligned 128-bit access\n");
    std::abort();
  }
}

struct Grid {
  int64_t blocks;
  int threads;
  int cluster = 1;  // blocks; a divisor of their number
};

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const Grid& grid, const Arguments&... arguments) {
  if (grid.blocks % grid.cluster != 0) {
    std::fprintf(stderr, "a grid that is no multiple of its clusters\n");
    std::abort();
  }
  grid_size.x = static_cast<unsigned>(grid.blocks);
  block_size.x = static_cast<unsigned>(grid.threads);
  cluster_size = grid.cluster;
  cluster_barrier = std::make_unique<std::barrier<>>(grid.cluster * grid.threads);
  std::vector<std::jthread> cluster;
  for (int block = 0; block < grid.cluster; ++block) {
    block_barrier[block] = std::make_unique<std::barrier<>>(grid.threads);
    for (int thread = 0; thread < grid.threads; ++thread) {
      cluster.emplace_back([&, block, thread] {
        thread_index.x = static_cast<unsigned>(thread);
        rank = block;
        for (int64_t first = 0; first < grid.blocks; first += grid.cluster) {
          block_index.x = static_cast<unsigned>(first + block);
          kernel(arguments...);
          cluster_barrier->arrive_and_wait();
        }
      });
    }
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
  cuda_emulation::block_barrier[cuda_emulation::rank]->arrive_and_wait();
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

// An allocation for each block of a cluster, so that the address sanitizer sees their ends.
template <typename T>
T& shared_memory_of(int rank) {
  static const auto memory = [] {
    std::array<std::unique_ptr<T>, cuda_emulation::kMaxCluster> blocks;
    for (auto& block : blocks) {
      block.reset(new T);  // not initialized, as on a GPU
    }
    return blocks;
  }();
  return *memory[rank];
}

template <typename T>
T& shared_memory() {
  return shared_memory_of<T>(cuda_emulation::rank);
}

inline int cluster_blocks() {
  return cuda_emulation::cluster_size;
}

inline int cluster_rank() {
  return cuda_emulation::rank;
}

inline void cluster_barrier() {
  cuda_emulation::cluster_barrier->arrive_and_wait();
}

}  // namespace torch_ext::cuda
