// What was chosen for speed on a GPU, with the reason beside it; whatever stands here, the results
// are right. Knows no CUDA.
//
// Nothing of it has been measured on a GPU yet: the values come from bytes in flight, from the
// registers that nvcc 13.0 gave the kernels (tests/cuda_registers.txt), and from what others
// publish.
#pragma once

#include <cstdint>

#include "kernels/operation.h"

namespace torch_ext::cuda {

// ---- Chosen when a kernel is launched, by the GPU
// -------------------------------------------------

struct Tuning {
  int arch;              // compute capability * 10; a row holds from this one to the next
  int threads;           // of a block; at most max_threads()
  int resident_threads;  // per SM that registers allow, in round figures
  int waves;             // blocks wanted, in multiples of what is resident at once
  int packs_per_thread;  // at least so many for each split of a sum, ...
  int packs_unsplit;     // ... and up to so many without a second kernel
  int cluster;           // most blocks of a cluster, a power of two up to the portable 8; 1: none
  int run_bytes;         // longest run of a channel that is traversed by columns
};

// Not measured on a GPU:
//   threads           a column traversal wants wide blocks: a segment is as wide as one
//   resident_threads  65,536 registers at 80 for each thread, in whole blocks
//   waves             the last wave, perhaps almost empty, costs at most a fifth
//   packs_per_thread  a split reads 16 or more KiB of each input for each partial that it writes
//   packs_unsplit     what a block (of a cluster of eight: 8 MiB of float32) sums in the time that
//   a
//                     second launch takes, some 3 us
//   run_bytes         a run of 512 bytes keeps a warp busy once; longer ones are planes
inline constexpr Tuning kTuning[] = {
    {0, 256, 768, 4, 8, 16, 1, 512},    // Turing, Ampere, Ada: no clusters
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

// ---- Compiled into the kernels, by the operation
// --------------------------------------------------

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
