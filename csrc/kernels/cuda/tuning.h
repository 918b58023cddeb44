// What was chosen for speed on a GPU, with the reason beside it; whatever stands here, the results
// are right. Knows no CUDA.
#pragma once

#include <cstdint>

#include "kernels/operation.h"

namespace torch_ext::cuda {

// Chosen when a kernel is launched, by the GPU. None of it has been measured on one.
struct Tuning {
  // Compute capability * 10; a row of the table holds from this one to the next.
  int arch;
  // Of a block; at most max_threads(). Wide, because a segment of columns is as wide as a block.
  int threads;
  // Threads of an SM that registers allow: 65,536 at about 80 for each.
  int resident_threads;
  // Blocks wanted, in multiples of what is resident at once, so that fast and slow ones even out.
  int waves;
  // At least so many packs for each thread and split of a sum: 4 of them are 16 KiB of each input,
  // read for each partial of a channel that is written.
  int packs_per_thread;
  // Up to so many without a second kernel, which costs a launch. 64 of them are 256 KiB of each
  // input for a block, 2 MiB for a cluster of eight.
  int packs_unsplit;
  // Most blocks of a cluster, a power of two up to the portable 8; 1: the GPU has no clusters.
  int cluster;
  // Longest run of a channel that is traversed by columns. 512 bytes give each thread of a warp one
  // pack; longer runs keep it busy as planes.
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

// What follows is compiled into the kernels, by the operation's counts.

inline constexpr int kWarp = 32;

// Most threads of a block. A thread holds, for each sum of each element of a pack, a chain and, in
// columns, an accumulator: three registers (for double six). From two sums on, blocks are half as
// large: that leaves up to 255 registers for a thread, and keeps a block's shared memory within the
// 48 KiB that every GPU has.
constexpr int max_threads(const OperationCounts& counts) {
  return counts.sums <= 1 ? 256 : 128;
}

// Blocks of that size that the registers of an SM have to hold at once: 128 registers for a thread
// of 256. nvcc 13.0 gives what is shipped at most 95 on sm_90, and a made-up operation of two
// inputs, six params and three sums 194 for 16-bit data (128 threads); nothing spills.
inline constexpr int kMinBlocks = 2;

// Packs of one visit, of each input: four, or what eight 128-bit loads in flight allow. (Where a
// tensor is shifted, a pack takes two loads.)
constexpr int packs_per_visit(const OperationCounts& counts, bool shifted) {
  const int loads = counts.inputs * (shifted ? 2 : 1);
  return loads <= 2 ? 4 : loads <= 4 ? 2 : 1;
}

inline constexpr int kMaxFinishThreads = 512;  // of a finishing block

}  // namespace torch_ext::cuda
