// The CUDA kernels: any channelwise operation (kernels/operation.h) on every element, and the sums
// of its terms for each channel, in one pass over memory. One kernel for each traversal, and one
// that finishes sums that were split over more blocks than a cluster has. They handle tails,
// alignment and reduction, and take the operation, and the step that follows its sums, as
// arguments. They know no tensors, no dispatcher and no stream.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/cuda/operands.h"
#include "kernels/cuda/plan.h"
#include "kernels/cuda/sums.cuh"
#include "kernels/cuda/traversal.h"
#include "kernels/cuda/tuning.h"
#include "kernels/cuda/visit.cuh"

namespace torch_ext::cuda {

// Static shared memory that every GPU has.
inline constexpr size_t kMaxSharedBytes = 48 * 1024;

template <typename Op>
inline constexpr int kMaxThreads = max_threads(counts_of<Op>());

// A block's shared memory for a traversal of so many columns and channels.
template <typename Op, typename compute_t, int kColumns, int kChannels>
using TaskSums = BlockSums<compute_t, compute_t, Op::kSums, kColumns, kMaxThreads<Op>, kChannels>;

// A thread's packs, visit after visit, and its sums.
template <
    typename Op,
    bool kShifted,
    typename scalar_t,
    int kAccumulators,
    typename Order,
    typename Cursor>
__device__ __forceinline__ auto visit_all(
    const Order& traversal,
    Cursor cursor,
    const Operands<Op, scalar_t>& data,
    const PackParams<Op, scalar_t>& params) {
  ThreadSums<compute_type<scalar_t>, Op::kSums, Pack<scalar_t>::kSize, kAccumulators> sums;
  while (!done(cursor)) {
    visit<Op, kShifted>(traversal, cursor, data, params, sums.chains);
    if constexpr (Op::kSums > 0) {
      sums.template added<packs_per_visit(counts_of<Op>(), kShifted)>();
    }
  }
  sums.flush();
  return sums.accumulators;
}

// Sums the columns of the block and passes on the totals of its channels: to the step if they are
// complete, else to the cluster or to the second kernel.
template <typename Block, typename Op, typename scalar_t, typename Step>
__device__ __forceinline__ void finish_task(
    Block& block,
    const ColumnGroups& groups,
    const Tasks& tasks,
    int64_t task,
    int64_t first_channel,
    int64_t all_channels,
    const Operands<Op, scalar_t>& data,
    const Step& step) {
  using compute_t = compute_type<scalar_t>;
  const bool partial = tasks.splits > 1 && !tasks.clustered;
  __syncthreads();
  sum_columns(block.columns, block.lanes, groups, [&](int sum, int channel, double total) {
    if (partial) {
      const int64_t row = sum * tasks.splits + tasks.split_of(task);
      data.partials[row * all_channels + first_channel + channel] = static_cast<compute_t>(total);
    } else {
      block.totals[sum][channel] = static_cast<compute_t>(total);
    }
  });
  if (tasks.clustered) {
    sum_cluster<Block, Op::kSums>(groups.channels(), first_channel, step);
  } else if (!partial) {
    __syncthreads();
    const int threads = static_cast<int>(blockDim.x);
    for (int c = static_cast<int>(threadIdx.x); c < groups.channels(); c += threads) {
      step(first_channel + c, block.totals_of(c));
    }
  }
  __syncthreads();
}

template <typename Op, bool kShifted, typename scalar_t, typename Step>
__global__ void __launch_bounds__(kMaxThreads<Op>, kMinBlocks)
    run_planes(const PlaneTraversal traversal, const Operands<Op, scalar_t> data, const Step step) {
  static_assert(Op::kSums == Step::kSums);
  const int thread = static_cast<int>(threadIdx.x);

  for (int64_t task = blockIdx.x; task < traversal.tasks.count(); task += gridDim.x) {
    const int64_t channel = traversal.tasks.group_of(task);
    PackParams<Op, scalar_t> params;
#pragma unroll
    for (int param = 0; param < Op::kParams; ++param) {
      const auto value = data.params[param][channel];
#pragma unroll
      for (auto& of_element : params) {
        of_element[param] = value;
      }
    }
    const auto sums = visit_all<Op, kShifted, scalar_t, 1>(
        traversal, first_cursor(traversal, task, thread), data, params);
    if constexpr (Op::kSums > 0) {
      auto& block = shared_memory<TaskSums<Op, compute_type<scalar_t>, kMaxThreads<Op>, 1>>();
      for (int sum = 0; sum < Op::kSums; ++sum) {
        block.columns[sum][thread] = sums[sum][0];
      }
      const int threads = static_cast<int>(blockDim.x);
      finish_task(
          block, {threads, 1, threads}, traversal.tasks, task, channel, traversal.tasks.groups,
          data, step);
    }
  }
}

// One pass of a task of columns: the rows that are aligned like its first one.
template <typename Op, bool kShifted, typename scalar_t, typename Block>
__device__ __forceinline__ void run_pass(
    const ColumnTraversal& traversal,
    const Operands<Op, scalar_t>& data,
    int64_t task,
    int pass,
    Block* block) {
  constexpr int kPack = Pack<scalar_t>::kSize;
  const ColumnCursor cursor =
      first_cursor<kPack>(traversal, task, pass, static_cast<int>(threadIdx.x));
  int32_t channels[kPack];
  pack_channels(traversal, cursor, channels);
  const int64_t first_channel = traversal.first_channel(task);
  PackParams<Op, scalar_t> params{};
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    if (channels[i] >= 0) {
#pragma unroll
      for (int param = 0; param < Op::kParams; ++param) {
        params[i][param] = data.params[param][first_channel + channels[i]];
      }
    }
  }
  const auto sums = visit_all<Op, kShifted, scalar_t, kPack>(traversal, cursor, data, params);
  if constexpr (Op::kSums > 0) {
    // In rows of different alignment a column belongs to different threads.
    if (pass > 0) {
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      if (cursor.begin <= i && i < cursor.end) {
#pragma unroll
        for (int sum = 0; sum < Op::kSums; ++sum) {
          auto& column = block->columns[sum][cursor.column + i];
          if (pass == 0) {
            column = sums[sum][i];
          } else {
            column.add(sums[sum][i]);
          }
        }
      }
    }
  }
}

template <typename Op, bool kShifted, typename scalar_t, typename Step>
__global__ void __launch_bounds__(kMaxThreads<Op>, kMinBlocks) run_columns(
    const ColumnTraversal traversal, const Operands<Op, scalar_t> data, const Step step) {
  static_assert(Op::kSums == Step::kSums);
  constexpr int kColumns = kMaxThreads<Op> * Pack<scalar_t>::kSize;

  for (int64_t task = blockIdx.x; task < traversal.tasks.count(); task += gridDim.x) {
    if constexpr (Op::kSums == 0) {
      for (int pass = 0; pass < traversal.passes; ++pass) {
        run_pass<Op, kShifted, scalar_t, void>(traversal, data, task, pass, nullptr);
      }
    } else {
      using Block = TaskSums<Op, compute_type<scalar_t>, kColumns, kColumns>;
      static_assert(sizeof(Block) <= kMaxSharedBytes);
      auto& block = shared_memory<Block>();
      for (int pass = 0; pass < traversal.passes; ++pass) {
        run_pass<Op, kShifted>(traversal, data, task, pass, &block);
      }
      const int width = traversal.width(task);
      const int length = width < traversal.period ? width : traversal.period;
      finish_task(
          block, {length, width / length, traversal.inner}, traversal.tasks, task,
          traversal.first_channel(task), traversal.channels, data, step);
    }
  }
}

// What comes before an operation, for each channel by itself.
inline constexpr int kForEachThreads = 128;

template <typename Function>
__global__ void __launch_bounds__(kForEachThreads)
    for_each(const int64_t channels, const Function function) {
  const int64_t hop = int64_t{gridDim.x} * blockDim.x;
  for (int64_t channel = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; channel < channels;
       channel += hop) {
    function(channel);
  }
}

// The sums of each channel's partials, in the order of their splits, and the step.
template <typename Step, typename partial_t>
__global__ void __launch_bounds__(kMaxFinishThreads)
    finish_sums(const FinishPlan plan, const partial_t* partials, const Step step) {
  constexpr int kSums = Step::kSums;
  [[maybe_unused]] constexpr int kSplits = 8 / kSums;  // with about eight loads in flight
  using Block =
      BlockSums<partial_t, double, kSums, kMaxFinishThreads, kMaxFinishThreads, kMaxFinishThreads>;
  static_assert(sizeof(Block) <= kMaxSharedBytes);
  auto& block = shared_memory<Block>();
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t hop = int64_t{gridDim.x} * plan.width;

  for (int64_t first = int64_t{blockIdx.x} * plan.width; first < plan.channels; first += hop) {
    const int64_t channel = first + thread % plan.width;
    const int64_t lane = thread / plan.width;
    std::array<Accumulator<partial_t>, kSums> sums{};
    if (channel < plan.channels && lane < plan.lanes) {
      const partial_t* partial = partials + lane * plan.channels + channel;
#pragma unroll kSplits
      for (int64_t split = lane; split < plan.splits; split += plan.lanes) {
#pragma unroll
        for (int sum = 0; sum < kSums; ++sum) {
          sums[sum].add(partial[sum * plan.splits * plan.channels]);
        }
        partial += plan.lanes * plan.channels;
      }
    }
#pragma unroll
    for (int sum = 0; sum < kSums; ++sum) {
      block.columns[sum][thread] = sums[sum];
    }
    __syncthreads();
    sum_columns(
        block.columns, block.lanes, {plan.width, plan.lanes, 1},
        [&](int sum, int c, double total) { block.totals[sum][c] = total; });
    __syncthreads();
    if (thread < plan.width && channel < plan.channels) {
      step(channel, block.totals_of(thread));
    }
    __syncthreads();
  }
}

}  // namespace torch_ext::cuda
