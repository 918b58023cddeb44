// From operands to kernels: how operands are aligned, and which kernels run a plan. The host's part
// that needs no GPU: launch(kernel, grid, arguments...) starts a kernel, on the current stream
// (launch.cuh) or in an emulation (tests/cpp).
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "kernels/cuda/kernels.cuh"

namespace torch_ext::cuda {

struct Grid {
  int64_t blocks;
  int threads;
  int cluster = 1;  // blocks; a divisor of their number
};

// Elements from the last 16-byte boundary to this one.
template <typename scalar_t>
int shift_of(const scalar_t* pointer) {
  return static_cast<int>(
      reinterpret_cast<uintptr_t>(pointer) / sizeof(scalar_t) % Pack<scalar_t>::kSize);
}

// Fills in what follows from the pointers' alignment: packs start at the boundaries of the tensor
// that is written, other tensors are read relative to them.
template <typename Op, typename scalar_t>
Work align(Operands<Op, scalar_t>& data, const ChannelView& view) {
  constexpr int kPack = Pack<scalar_t>::kSize;
  int base = shift_of(data.inputs[0]);
  for (const scalar_t* output : data.outputs) {
    base = output != nullptr ? shift_of(output) : base;
  }
  bool shifted = false;
  for (int input = 0; input < Op::kInputs; ++input) {
    data.shifts[input] = (shift_of(data.inputs[input]) - base + kPack) % kPack;
    shifted = shifted || data.shifts[input] != 0;
  }
  return {view, counts_of<Op>(), sizeof(scalar_t), base, shifted};
}

template <bool kShifted, typename Op, typename scalar_t, typename Step, typename Launch>
void run_traversal(
    const LaunchPlan& plan,
    const Operands<Op, scalar_t>& data,
    const Step& step,
    const Launch& launch) {
  const Grid grid{plan.grid, plan.threads, plan.cluster};
  if (plan.traversal == Traversal::kPlanes) {
    launch(run_planes<Op, kShifted, scalar_t, Step>, grid, plan.planes, data, step);
  } else {
    launch(run_columns<Op, kShifted, scalar_t, Step>, grid, plan.columns, data, step);
  }
}

// For each channel, the sums of its partials, a row of channels for each split, and the step. (As
// splits of one channel, totals of many are added: for values that all channels share.)
template <typename partial_t, typename Step, typename Launch>
void run_finish(
    const partial_t* partials,
    int64_t channels,
    int64_t splits,
    const Step& step,
    const Launch& launch) {
  const FinishPlan finish = plan_finish(channels, splits);
  launch(finish_sums<Step, partial_t>, Grid{finish.grid, finish.threads}, finish, partials, step);
}

// function(channel) for each of them: params that operations read.
template <typename Function, typename Launch>
void run_for_each(int64_t channels, const Function& function, const Launch& launch) {
  constexpr int64_t kMostBlocks = 1024;
  const int64_t blocks = std::min(ceil_div(channels, int64_t{kForEachThreads}), kMostBlocks);
  launch(for_each<Function>, Grid{blocks, kForEachThreads}, channels, function);
}

// The kernels of a plan. Where it has a second one, data.partials has room for its workspace.
template <typename Op, typename scalar_t, typename Step, typename Launch>
void run_plan(
    const Work& work,
    const LaunchPlan& plan,
    const Operands<Op, scalar_t>& data,
    const Step& step,
    const Launch& launch) {
  if (work.shifted) {
    run_traversal<true>(plan, data, step, launch);
  } else {
    run_traversal<false>(plan, data, step, launch);
  }
  if constexpr (Op::kSums > 0) {
    if (plan.has_second_kernel()) {
      const compute_type<scalar_t>* partials = data.partials;
      run_finish(partials, work.view.channels, plan.splits, step, launch);
    }
  }
}

}  // namespace torch_ext::cuda
