// Sums that stay exact enough for any number of terms, and a block's sums per channel in a fixed
// order. No atomics: the same launch gives the same bits. Knows no layout but "columns of
// channels".
#pragma once

#include <cstdint>

#include "kernels/cuda/intrinsics.cuh"

namespace torch_ext::cuda {

// The second level of a sum. Its first level, chains of a few terms in T itself, keeps the error
// within a few units of the last place; this level adds none to speak of, for any number of chains.
template <typename T>
struct WideSum;

template <>
struct WideSum<float> {
  double sum;

  constexpr void add(float term) { sum += term; }
  constexpr void add(const WideSum& other) { sum += other.sum; }
  constexpr double result() const { return sum; }
};

// Knuth's TwoSum: `low` gathers the exact rounding errors of `high`. Where high is not finite the
// error comes out as NaN and is left out, so that Inf stays Inf.
template <>
struct WideSum<double> {
  double high;
  double low;

  constexpr void add(double term) {
    const double sum = high + term;
    const double kept = sum - high;
    const double error = (high - (sum - kept)) + (term - kept);
    low += error == error ? error : 0.0;
    high = sum;
  }
  constexpr void add(const WideSum& other) {
    add(other.high);
    low += other.low;
  }
  constexpr double result() const { return high + low; }
};

// Balanced, so that the rounding errors of a few terms stay at their depth.
template <int kCount, typename T>
constexpr T tree_sum(const T (&term)[kCount]) {
  T partial[kCount];
  for (int i = 0; i < kCount; ++i) {
    partial[i] = term[i];
  }
  for (int width = kCount / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) {
      partial[i] += partial[i + width];
    }
  }
  return partial[0];
}

// Where a block's column sums belong: `repeats` times a row of `length` columns, `inner` neighbours
// for each channel.
struct ColumnGroups {
  int length;
  int repeats;
  int inner;
};

// Sums the columns of every channel; emit(channel, sum) is called once for each, by some thread. To
// be called by all threads of a block after a barrier behind the last write of `columns`; another
// barrier has to follow before they or `lanes`, one for each thread, are written again.
template <typename T, typename Emit>
__device__ __forceinline__ void sum_columns(
    const WideSum<T>* columns, WideSum<T>* lanes, const ColumnGroups& groups, const Emit& emit) {
  const int channels = groups.length / groups.inner;
  const int terms = groups.repeats * groups.inner;
  const int threads = static_cast<int>(blockDim.x);
  const int thread = static_cast<int>(threadIdx.x);

  // A power of two of neighbouring threads shares a channel.
  int sharers = 1;
  while (sharers < 32 && sharers < terms && 2 * sharers * channels <= threads) {
    sharers *= 2;
  }
  for (int item = thread; item < channels * sharers; item += threads) {
    const int channel = item / sharers;
    WideSum<T> sum{};
    for (int term = item % sharers; term < terms; term += sharers) {
      const int repeat = term / groups.inner;
      const int column = channel * groups.inner + term % groups.inner;
      sum.add(columns[repeat * groups.length + column]);
    }
    if (sharers == 1) {
      emit(channel, sum);
    } else {
      lanes[item] = sum;
    }
  }
  if (sharers == 1) {
    return;
  }
  __syncthreads();
  if (thread < channels) {
    WideSum<T> sum{};
    for (int i = 0; i < sharers; ++i) {
      sum.add(lanes[thread * sharers + i]);
    }
    emit(thread, sum);
  }
}

// Adds the rows of sums that the blocks of a cluster hold in shared memory, in the order of their
// ranks; row_of(rank) points to one, emit(channel, sum) is called once for each channel, by some
// thread of some block. To be called by all threads of all of them; the rows may be written again
// behind it.
template <typename T, typename RowOf, typename Emit>
__device__ __forceinline__ void sum_cluster(int channels, const RowOf& row_of, const Emit& emit) {
  cluster_barrier();
  const int blocks = cluster_blocks();
  const int threads = static_cast<int>(blockDim.x);
  const int first = cluster_rank() * threads + static_cast<int>(threadIdx.x);
  for (int channel = first; channel < channels; channel += blocks * threads) {
    WideSum<T> sum{};
    for (int rank = 0; rank < blocks; ++rank) {
      sum.add(row_of(rank)[channel]);
    }
    emit(channel, sum);
  }
  cluster_barrier();  // a block's memory lives as long as others read it
}

}  // namespace torch_ext::cuda
