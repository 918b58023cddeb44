// The CPU engine's entry: runs an operation over the tasks of a plan. One definition for each
// instruction set (engine.h), instantiated for the operations of each `kernels/cpu/<op>.cpp`. Plain
// pointers; each task may run on any thread, in any order. Knows no tensors and no threads.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/accumulator.h"
#include "kernels/channel_values.h"
#include "kernels/cpu/plan.h"
#include "kernels/operation.h"

namespace torch_ext::cpu {

// Where tasks leave the sums of their channels: (splits, sums, channels), in this order.
template <typename compute_t, int kSums>
struct Partials {
  Accumulator<compute_t>* values;
  int64_t channels;

  Accumulator<compute_t>& at(int64_t split, int sum, int64_t channel) const {
    return values[(split * kSums + sum) * channels + channel];
  }
};

// What an operation reads and writes. Tensors are dense and have the plan's view.
template <typename Op, typename scalar_t>
struct Operands {
  std::array<const scalar_t*, Op::kInputs> inputs;
  std::array<scalar_t*, Op::kOutputs> outputs;  // all null where only the sums are wanted
  std::array<ChannelInput<scalar_t>, Op::kParams> params;
  Partials<compute_type<scalar_t>, Op::kSums> partials{};
  bool bypass_caches = false;  // only if plan.writes_whole_lines()
};

// Tasks first ... last - 1 of the plan.
#define TORCH_EXT_INSTRUCTION_SET(NAME, ...)                                                  \
  namespace NAME {                                                                            \
  template <typename Op, typename scalar_t>                                                   \
  void run_tasks(                                                                             \
      const Plan& plan, int64_t first, int64_t last, const Operands<Op, scalar_t>& operands); \
  }
#include "kernels/cpu/instruction_sets.def"
#undef TORCH_EXT_INSTRUCTION_SET

}  // namespace torch_ext::cpu
