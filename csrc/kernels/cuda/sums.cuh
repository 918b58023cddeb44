// An operation's sums on the device: terms into a thread's chains, chains into accumulators, a
// block's accumulators into totals of its channels, in a fixed order. No atomics: the same launch
// gives the same bits. Knows no layout but "columns of channels".
//
// How often a term is rounded, for float (for double): kChain = 12 (4) times at most in its chain,
// where the first rounding is that of its product, since it is added by a fused multiply-add; 3 (1)
// times where the chains of a pack's elements meet; once as a partial. That is 16 (6) of the 16 (8)
// that the contract allows. The roundings of accumulators are negligible, and the last rounding of
// the result is counted separately.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/accumulator.h"
#include "kernels/cuda/intrinsics.cuh"
#include "kernels/operation.h"

namespace torch_ext::cuda {

// Chains of terms in the compute type: for each sum, a chain for each element of a thread's packs.
template <typename T, int kSums, int kPack>
using Chains = std::array<std::array<T, kPack>, kSums>;

// The sums of one element, as an operation adds to them (operation.h). Where the element is absent,
// because the pack belongs to the task only in part, nothing is added.
template <typename T, int kSums, int kPack>
struct ElementSums {
  struct Sum {
    T& chain;
    bool present;

    __device__ __forceinline__ void add(T term, bool where = true) const {
      chain = select(present && where, chain + term, chain);
    }
    __device__ __forceinline__ void add_product(T a, T b, bool where = true) const {
      chain = select(present && where, multiply_add(a, b, chain), chain);
    }
  };

  Chains<T, kSums, kPack>& chains;
  int element;
  bool present;

  __device__ __forceinline__ Sum operator[](int sum) const {
    return {chains[sum][element], present};
  }
};

// A balanced tree: a term is rounded only as often as the tree is deep.
template <typename T, size_t kCount>
constexpr T tree_sum(std::array<T, kCount> terms) {
  static_assert((kCount & (kCount - 1)) == 0);
  for (size_t width = kCount / 2; width > 0; width /= 2) {
    for (size_t i = 0; i < width; ++i) {
      terms[i] += terms[i + width];
    }
  }
  return terms[0];
}

// A thread's sums: chains, and accumulators that gather them. An accumulator for each element
// (kAccumulators = kPack), or one for all of them (1).
template <typename T, int kSums, int kPack, int kAccumulators>
struct ThreadSums {
  Chains<T, kSums, kPack> chains{};
  std::array<std::array<Accumulator<T>, kAccumulators>, kSums> accumulators{};
  int length = 0;  // of the chains

  // Counts the packs of a visit, whose terms were added to the chains.
  template <int kPacks>
  __device__ __forceinline__ void added() {
    static_assert(kChain<T> % kPacks == 0, "chains would get longer than the error bound allows");
    length += kPacks;
    if (length == kChain<T>) {
      flush();
    }
  }

  __device__ __forceinline__ void flush() {
#pragma unroll
    for (int sum = 0; sum < kSums; ++sum) {
      if constexpr (kAccumulators == 1) {
        accumulators[sum][0].add(tree_sum(chains[sum]));
      } else {
#pragma unroll
        for (int i = 0; i < kPack; ++i) {
          accumulators[sum][i].add(chains[sum][i]);
        }
      }
    }
    chains = {};
    length = 0;
  }
};

// A block's shared memory: accumulators of its columns, a row for each sum; room for each thread;
// and the totals of its channels, for a step or for the other blocks of a cluster.
template <typename T, typename Total, int kSums, int kColumns, int kThreads, int kChannels>
struct BlockSums {
  Accumulator<T> columns[kSums][kColumns];
  Accumulator<T> lanes[kThreads];
  Total totals[kSums][kChannels];

  __device__ __forceinline__ std::array<double, kSums> totals_of(int channel) const {
    std::array<double, kSums> values;
#pragma unroll
    for (int sum = 0; sum < kSums; ++sum) {
      values[sum] = static_cast<double>(totals[sum][channel]);
    }
    return values;
  }
};

// Which channels a block's columns belong to: `repeats` times a row of `length` columns, with
// `inner` neighbours for each channel.
struct ColumnGroups {
  int length;
  int repeats;
  int inner;

  constexpr int channels() const { return length / inner; }
};

// Sums the columns of every channel; emit(sum, channel, total) is called once for each sum of each,
// by some thread. All threads of a block must call it, after a barrier that follows the last write
// of `columns`. Another barrier has to follow before these or `lanes` are written again.
template <typename T, int kSums, int kColumns, typename Emit>
__device__ __forceinline__ void sum_columns(
    const Accumulator<T> (&columns)[kSums][kColumns],
    Accumulator<T>* lanes,
    const ColumnGroups& groups,
    const Emit& emit) {
  const int channels = groups.channels();
  const int totals = kSums * channels;
  const int terms = groups.repeats * groups.inner;
  const int threads = static_cast<int>(blockDim.x);
  const int thread = static_cast<int>(threadIdx.x);
  const auto sum_of = [&](int total) { return kSums == 1 ? 0 : total / channels; };

  // A power of two of neighbouring threads shares a total.
  int sharers = 1;
  while (sharers < 32 && sharers < terms && 2 * sharers * totals <= threads) {
    sharers *= 2;
  }
  for (int item = thread; item < totals * sharers; item += threads) {
    const int total = item / sharers;
    const int sum = sum_of(total);
    const int channel = total - sum * channels;
    Accumulator<T> gathered{};
    for (int term = item % sharers; term < terms; term += sharers) {
      const int repeat = term / groups.inner;
      const int column = channel * groups.inner + term % groups.inner;
      gathered.add(columns[sum][repeat * groups.length + column]);
    }
    if (sharers == 1) {
      emit(sum, channel, gathered.total());
    } else {
      lanes[item] = gathered;
    }
  }
  if (sharers == 1) {
    return;
  }
  __syncthreads();
  if (thread < totals) {
    Accumulator<T> gathered{};
    for (int i = 0; i < sharers; ++i) {
      gathered.add(lanes[thread * sharers + i]);
    }
    const int sum = sum_of(thread);
    emit(sum, thread - sum * channels, gathered.total());
  }
}

// Adds the totals that the blocks of a cluster hold in shared memory, in the order of their ranks,
// and takes the step for each channel, by some thread of some block. All threads of all blocks must
// call it; the totals may be written again afterwards.
template <typename Block, int kSums, typename Step>
__device__ __forceinline__ void sum_cluster(int channels, int64_t first_channel, const Step& step) {
  cluster_barrier();
  const int blocks = cluster_blocks();
  const int threads = static_cast<int>(blockDim.x);
  const int first = cluster_rank() * threads + static_cast<int>(threadIdx.x);
  for (int channel = first; channel < channels; channel += blocks * threads) {
    std::array<Accumulator<double>, kSums> sums{};
    for (int rank = 0; rank < blocks; ++rank) {
      const auto totals = shared_memory_of<Block>(rank).totals_of(channel);
#pragma unroll
      for (int sum = 0; sum < kSums; ++sum) {
        sums[sum].add(totals[sum]);
      }
    }
    std::array<double, kSums> totals;
#pragma unroll
    for (int sum = 0; sum < kSums; ++sum) {
      totals[sum] = sums[sum].total();
    }
    step(first_channel + channel, totals);
  }
  cluster_barrier();  // the memory of a block must exist as long as other blocks read it
}

}  // namespace torch_ext::cuda
