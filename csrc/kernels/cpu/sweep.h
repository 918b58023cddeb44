// A sweep: an operation over all elements, task by task, and then its step for each channel. Runs
// one sweep, or several over the same tensors. Takes threads and memory as an argument; knows no
// tensors.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>

#include "kernels/cpu/instruction_sets.h"
#include "kernels/cpu/run_tasks.h"
#include "kernels/step.h"

namespace torch_ext::cpu {

// Threads and memory are a Runtime's:
//   parallel_for(size, grain, body)   body(first, last) on ranges that make up 0 ... size - 1, on
//   any
//                                     threads; `grain` is what makes another thread worth waking
//   allocate(bytes)                   Memory, aligned as by malloc
using Memory = std::unique_ptr<void, void (*)(void*)>;

template <typename Op, typename scalar_t>
auto run_tasks_of(InstructionSet set) {
  auto* run = &DEFAULT::run_tasks<Op, scalar_t>;
  switch (set) {
#define TORCH_EXT_INSTRUCTION_SET(NAME, ...) \
  case InstructionSet::NAME:                 \
    run = &NAME::run_tasks<Op, scalar_t>;    \
    break;
#include "kernels/cpu/instruction_sets.def"
#undef TORCH_EXT_INSTRUCTION_SET
  }
  return run;
}

struct RunOptions {
  InstructionSet set;
  bool stream = true;  // large results may use non-temporal stores
  int tensors = 0;     // the number that several sweeps touch, each counted once
  Tuning tuning = kTuning;
};

// An operation over all elements and a step for each channel: step(channel, totals), once, when the
// channel's sums are complete. A later sweep may read what the step wrote as its params.
template <typename Op, typename scalar_t, typename Step>
class Sweep {
 public:
  using compute_t = compute_type<scalar_t>;
  using scalar_type = scalar_t;
  static constexpr OperationCounts kCounts = counts_of<Op>();

  Sweep(const Operands<Op, scalar_t>& operands, const Step& step)
      : operands_(operands), step_(step) {}

  // Comes first.
  template <typename Runtime>
  void prepare(const Plan& plan, const RunOptions& options, const Runtime& runtime) {
    run_tasks_ = run_tasks_of<Op, scalar_t>(options.set);
    const auto& outputs = operands_.outputs;
    operands_.bypass_caches =
        options.stream && Op::kOutputs > 0 &&
        std::all_of(outputs.begin(), outputs.end(), [&](const scalar_t* output) {
          return plan.should_bypass_caches(output);
        });
    if constexpr (Op::kSums > 0) {
      using Partial = Accumulator<compute_t>;
      const int64_t channels = plan.view().channels;
      memory_ = runtime.allocate(plan.splits() * Op::kSums * channels * sizeof(Partial));
      operands_.partials = {static_cast<Partial*>(memory_.get()), channels};
    }
  }

  void run(const Plan& plan, int64_t first_task, int64_t last_task) const {
    run_tasks_(plan, first_task, last_task, operands_);
  }

  // Adds the partial sums of some channels, in the order of the splits.
  void finish(const Plan& plan, int64_t first_channel, int64_t last_channel) const {
    if constexpr (Op::kSums == 0) {
      return;
    }
    for (int64_t c = first_channel; c < last_channel; c += kBlock) {
      finish_block(plan.splits(), c, std::min(kBlock, last_channel - c));
    }
  }

 private:
  // Channels whose sums are independent of each other and have not to wait for one another.
  static constexpr int64_t kBlock = 32;

  void finish_block(int64_t splits, int64_t first_channel, int64_t channels) const {
    std::array<std::array<Accumulator<compute_t>, kBlock>, Op::kSums> sums;
    for (int s = 0; s < Op::kSums; ++s) {
      std::copy_n(&operands_.partials.at(0, s, first_channel), channels, sums[s].begin());
      for (int64_t split = 1; split < splits; ++split) {
        const auto* const partials = &operands_.partials.at(split, s, first_channel);
        for (int64_t c = 0; c < channels; ++c) {
          sums[s][c].add(partials[c]);
        }
      }
    }
    for (int64_t c = 0; c < channels; ++c) {
      std::array<double, Op::kSums> totals;
      for (int s = 0; s < Op::kSums; ++s) {
        totals[s] = sums[s][c].total();
      }
      step_(first_channel + c, totals);
    }
  }

  Operands<Op, scalar_t> operands_;
  Step step_;
  decltype(run_tasks_of<Op, scalar_t>({})) run_tasks_ = nullptr;
  Memory memory_{nullptr, nullptr};
};

namespace sweep_detail {

template <typename Sweep, typename Runtime>
void run_alone(
    const ChannelView& view, const RunOptions& options, const Runtime& runtime, Sweep& sweep) {
  const Plan plan(view, sizeof(typename Sweep::scalar_type), Sweep::kCounts, options.tuning);
  sweep.prepare(plan, options, runtime);
  runtime.parallel_for(plan.size(), plan.task_grain(), [&](int64_t first, int64_t last) {
    sweep.run(plan, first, last);
  });
  if constexpr (Sweep::kCounts.sums > 0) {
    runtime.parallel_for(view.channels, plan.channel_grain(), [&](int64_t first, int64_t last) {
      sweep.finish(plan, first, last);
    });
  }
}

// Runs all sweeps over the channels of a task while these are in the cache, before the next task
// begins.
template <typename Runtime, typename... Sweeps>
void run_by_channels(
    const Plan& plan, const RunOptions& options, const Runtime& runtime, Sweeps&... sweeps) {
  (sweeps.prepare(plan, options, runtime), ...);
  runtime.parallel_for(plan.size(), plan.task_grain(), [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const Range channels = plan[task].channels;
      const auto run = [&](auto& sweep) {
        sweep.run(plan, task, task + 1);
        sweep.finish(plan, channels.first, channels.last);
      };
      (run(sweeps), ...);
    }
  });
}

}  // namespace sweep_detail

// Runs sweeps over a tensor that is not empty, one after another.
template <typename Runtime, typename... Sweeps>
void run(
    const ChannelView& view, const RunOptions& options, const Runtime& runtime, Sweeps... sweeps) {
  if constexpr (sizeof...(Sweeps) > 1) {
    constexpr int kElementBytes = std::max({sizeof(typename Sweeps::scalar_type)...});
    constexpr OperationCounts kLargest{
        std::max({Sweeps::kCounts.inputs...}), std::max({Sweeps::kCounts.outputs...}),
        std::max({Sweeps::kCounts.params...}), std::max({Sweeps::kCounts.sums...})};
    if (const auto plan = Plan::of_whole_channels(
            view, kElementBytes, kLargest, options.tensors, options.tuning)) {
      return sweep_detail::run_by_channels(*plan, options, runtime, sweeps...);
    }
  }
  (sweep_detail::run_alone(view, options, runtime, sweeps), ...);
}

}  // namespace torch_ext::cpu
