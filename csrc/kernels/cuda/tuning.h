// Values that were chosen for speed on a GPU, each with its reason. Results are correct with any
// values. Knows no CUDA.
#pragma once

#include <cstdint>

#include "kernels/operation.h"

namespace torch_ext::cuda {

// Chosen when a kernel is launched, by the GPU. None of it has been measured on one.
struct Tuning {
  // Compute capability * 10; a row of the table applies from this value to that of the next row.
  int arch;
  // Threads of a block; at most max_threads(). Many, because a segment of columns is as wide as a
  // block.
  int threads;
  // Threads of an SM, as limited by registers: 65,536 at about 80 for each thread.
  int resident_threads;
  // Blocks of a launch, in multiples of the number that is resident at once, so that fast and slow
  // blocks even out.
  int waves;
  // The fewest packs for each thread and split of a sum: 4 of them read 16 KiB of each input for
  // each partial of a channel that is written.
  int packs_per_thread;
  // Up to this many packs there is no second kernel, which costs a launch. 64 of them are 256 KiB
  // of each input for a block, 2 MiB for a cluster of eight.
  int packs_unsplit;
  // The most blocks of a cluster, a power of two up to the portable limit of 8; 1: the GPU has no
  // clusters.
  int cluster;
  // The longest run of a channel that is traversed as columns. 512 bytes give each thread of a warp
  // one pack; longer runs keep a warp busy as planes.
  int run_bytes;
};

inline constexpr Tuning kTuning[] = {
    {0, 256, 768, 4, 8, 16, 1, 512},    // Turing, Ampere, Ada
    {90, 256, 768, 4, 4, 64, 8, 512},   // Hopper
    {100, 256, 768, 4, 4, 64, 8, 512},  // Blackwell: as Hopper
};

constexpr Tuning tuning_of(int arch) {
  Tuning found = kTuning[0];
  for (const Tuning& row : kTuning) {
    found = row.arch <= arch ? row : found;
  }
  return found;
}

// The following values are compiled into the kernels, according to the operation's counts.

inline constexpr int kWarp = 32;

// The most threads of a block. A thread holds, for each sum of each element of a pack, a chain and,
// in columns, an accumulator: three registers (for double six). From two sums on, blocks are half
// as large: that leaves up to 255 registers for a thread, and keeps a block's shared memory within
// the 48 KiB that every GPU has.
constexpr int max_threads(const OperationCounts& counts) {
  return counts.sums <= 1 ? 256 : 128;
}

// How many blocks of that size the registers of an SM have to hold at once: with 256 threads, 128
// registers for each. nvcc 13.0 uses at most 95 on sm_90 for the kernels of this library, and 194
// (with 128 threads) for a made-up operation of two inputs, six params and three sums on 16-bit
// data; nothing spills.
inline constexpr int kMinBlocks = 2;

// Packs of each input in one visit: four, or as many as eight 128-bit loads in flight allow. (Where
// a tensor is shifted, a pack takes two loads.)
constexpr int packs_per_visit(const OperationCounts& counts, bool shifted) {
  const int loads = counts.inputs * (shifted ? 2 : 1);
  return loads <= 2 ? 4 : loads <= 4 ? 2 : 1;
}

inline constexpr int kMaxFinishThreads = 512;  // of a block of the second kernel

}  // namespace torch_ext::cuda
