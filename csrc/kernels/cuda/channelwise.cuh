// The CUDA walkers: an operation on every element with its channel's slope, and, if the operation
// has one, the sum of its terms for each channel, in one pass over memory. Two kernels, one for
// each traversal of walk.h, and one that finishes sums that were split over more blocks than a
// cluster has. They own tails, alignment and reduction and take the operation as an argument
// (prelu_operations.h). They know no tensors, no dispatcher and no stream.
#pragma once

#include <cstdint>

#include "kernels/cuda/launch_plan.h"
#include "kernels/cuda/operands.cuh"
#include "kernels/cuda/reduction.cuh"
#include "kernels/cuda/visit.cuh"
#include "kernels/cuda/walk.h"

namespace torch_ext::cuda {

// Slots until first-level sums go to the second level.
template <typename acc_t>
inline constexpr int kChain = 8;
template <>
inline constexpr int kChain<double> = 4;

// A thread's sums: chains of a few terms for each element of its slots, gathered in the second
// level. One sum for each element (kCount = kVector), or one for all of them (kCount = 1).
template <typename T, int kVector, int kCount>
struct Cascade {
  T chain[kVector] = {};
  WideSum<T> wide[kCount] = {};
  int slots = 0;

  // Counts the slots of a visit whose terms were added to the chains.
  __device__ __forceinline__ void added(int visited) {
    slots += visited;
    if (slots >= kChain<T>) {
      flush();
    }
  }

  __device__ __forceinline__ void flush() {
    if constexpr (kCount == 1) {
      wide[0].add(tree_sum(chain));
    }
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if constexpr (kCount == kVector) {
        wide[i].add(chain[i]);
      }
      chain[i] = T(0);
    }
    slots = 0;
  }
};

// A block's shared memory.
template <typename T, int kColumns, int kChannels>
struct BlockSums {
  WideSum<T> columns[kColumns];
  WideSum<T> lanes[kMaxThreads];
  T row[kChannels];  // for the other blocks of the cluster
};

// Sums the block's columns, and sends the sums of its channels where they belong: to their place if
// they are whole, to the cluster, or to the second kernel.
template <typename Block, typename scalar_t, typename acc_t>
__device__ __forceinline__ void finish_block(
    Block& block,
    const ColumnGroups& groups,
    const Tasks& tasks,
    int64_t task,
    int64_t first_channel,
    int64_t all_channels,
    const Operands<scalar_t, acc_t>& data) {
  __syncthreads();
  sum_columns(block.columns, block.lanes, groups, [&](int channel, const WideSum<acc_t>& sum) {
    const acc_t rounded = static_cast<acc_t>(sum.result());
    if (tasks.splits == 1) {
      data.grad_weight.write(first_channel + channel, rounded);
    } else if (tasks.clustered) {
      block.row[channel] = rounded;
    } else {
      data.partials[tasks.split_of(task) * all_channels + first_channel + channel] = rounded;
    }
  });
  if (tasks.clustered) {
    sum_cluster<acc_t>(
        groups.length / groups.inner, [](int rank) { return shared_memory_of<Block>(rank).row; },
        [&](int channel, const WideSum<acc_t>& sum) {
          data.grad_weight.write(first_channel + channel, static_cast<acc_t>(sum.result()));
        });
  }
  __syncthreads();
}

template <typename Op, bool kShifted, typename scalar_t, typename acc_t>
__global__ void __launch_bounds__(kMaxThreads, 2)
    walk_planes(const PlaneWalk walk, const Operands<scalar_t, acc_t> data) {
  constexpr int kVector = Pack<scalar_t>::kSize;
  const int thread = static_cast<int>(threadIdx.x);

  for (int64_t task = blockIdx.x; task < walk.tasks.count(); task += gridDim.x) {
    const int64_t channel = walk.tasks.group_of(task);
    acc_t weight[kVector];
    const acc_t slope = data.weight[channel];
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      weight[i] = slope;
    }
    Cascade<acc_t, kVector, 1> total;
    PlaneCursor cursor = first_slot(walk, task, thread);
    while (!done(cursor)) {
      visit<Op, kShifted>(walk, cursor, data, weight, total.chain);
      if constexpr (Op::kReduces) {
        total.added(unroll<Op, kShifted>());
      }
    }
    if constexpr (Op::kReduces) {
      total.flush();
      auto& block = shared_memory<BlockSums<acc_t, kMaxThreads, 1>>();
      block.columns[thread] = total.wide[0];
      const int threads = static_cast<int>(blockDim.x);
      finish_block(
          block, {threads, 1, threads}, walk.tasks, task, channel, walk.tasks.groups, data);
    }
  }
}

// One pass of a column-wise task: the rows that are aligned like its first one.
template <typename Op, bool kShifted, typename scalar_t, typename acc_t>
__device__ __forceinline__ void walk_pass(
    const ColumnWalk& walk,
    const Operands<scalar_t, acc_t>& data,
    int64_t task,
    int pass,
    WideSum<acc_t>* columns) {
  constexpr int kVector = Pack<scalar_t>::kSize;
  ColumnCursor cursor = first_slot<kVector>(walk, task, pass, static_cast<int>(threadIdx.x));
  int32_t channels[kVector];
  slot_channels(walk, cursor, channels);
  const int64_t first_channel = walk.first_channel(task);
  acc_t weight[kVector];
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    weight[i] = channels[i] >= 0 ? data.weight[first_channel + channels[i]] : acc_t(0);
  }
  Cascade<acc_t, kVector, kVector> total;
  while (!done(cursor)) {
    visit<Op, kShifted>(walk, cursor, data, weight, total.chain);
    if constexpr (Op::kReduces) {
      total.added(unroll<Op, kShifted>());
    }
  }
  if constexpr (Op::kReduces) {
    total.flush();
    // Differently aligned rows give a column to different threads.
    if (pass > 0) {
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (cursor.begin <= i && i < cursor.end) {
        WideSum<acc_t>& column = columns[cursor.column + i];
        if (pass == 0) {
          column = total.wide[i];
        } else {
          column.add(total.wide[i]);
        }
      }
    }
  }
}

template <typename Op, bool kShifted, typename scalar_t, typename acc_t>
__global__ void __launch_bounds__(kMaxThreads, 2)
    walk_columns(const ColumnWalk walk, const Operands<scalar_t, acc_t> data) {
  constexpr int kColumns = kMaxThreads * Pack<scalar_t>::kSize;
  auto& block = shared_memory<BlockSums<acc_t, kColumns, kColumns>>();

  for (int64_t task = blockIdx.x; task < walk.tasks.count(); task += gridDim.x) {
    for (int pass = 0; pass < walk.passes; ++pass) {
      walk_pass<Op, kShifted>(walk, data, task, pass, block.columns);
    }
    if constexpr (Op::kReduces) {
      const int width = walk.width(task);
      const int length = width < walk.period ? width : walk.period;
      finish_block(
          block, {length, width / length, walk.inner}, walk.tasks, task, walk.first_channel(task),
          walk.channels, data);
    }
  }
}

template <typename T>
struct FinishSums {
  WideSum<T> columns[kMaxFinishThreads];
  WideSum<T> lanes[kMaxFinishThreads];
};

// grad_weight[c] = the sum of column c of partials, in the order of its rows.
template <typename scalar_t, typename acc_t>
__global__ void __launch_bounds__(kMaxFinishThreads) finish_sums(
    const FinishPlan plan,
    const acc_t* partials,
    const ChannelOutput<scalar_t, acc_t> grad_weight) {
  auto& block = shared_memory<FinishSums<acc_t>>();
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t step = int64_t{gridDim.x} * plan.width;

  for (int64_t first = int64_t{blockIdx.x} * plan.width; first < plan.channels; first += step) {
    const int64_t channel = first + thread % plan.width;
    const int64_t row = thread / plan.width;
    WideSum<acc_t> sum{};
    if (channel < plan.channels && row < plan.lanes) {
#pragma unroll 8
      for (int64_t split = row; split < plan.splits; split += plan.lanes) {
        sum.add(partials[split * plan.channels + channel]);
      }
    }
    block.columns[thread] = sum;
    __syncthreads();
    sum_columns(
        block.columns, block.lanes, {plan.width, plan.lanes, 1},
        [&](int c, const WideSum<acc_t>& total) {
          if (first + c < plan.channels) {
            grad_weight.write(first + c, static_cast<acc_t>(total.result()));
          }
        });
    __syncthreads();
  }
}

}  // namespace torch_ext::cuda
