// The CPU kernels of PReLU as the operators call them: plain pointers and tasks. One set per
// instruction set; each task may run on any thread, in any order. Knows no tensors and no threads.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/cpu/channel_tasks.h"
#include "kernels/cpu/sums.h"
#include "kernels/prelu_math.h"

namespace torch_ext::cpu {

// weight has one slope per channel; everything else is of the tasks' layout, one after another in
// memory.
template <typename scalar_t, typename weight_t, int kInputs>
struct ChannelwiseOperands {
  struct Place {
    std::array<const scalar_t*, kInputs> inputs;
    scalar_t* output;  // null where nothing is mapped
  };

  Place begin;
  const weight_t* weight;
  bool bypass_caches = false;  // only if ChannelTasks::writes_whole_lines
};

// Where a task leaves its channels' sums: in its row of partial sums or, if each channel has only
// one, rounded in the result.
template <typename acc_t, typename weight_t>
struct ChannelSums {
  WideSum<acc_t>* partial;  // (splits, channels), or null
  weight_t* result;         // (channels), or null where nothing is summed
  int64_t channels;

  void put(int64_t split, int64_t channel, const WideSum<acc_t>& sum) const {
    if (partial != nullptr) {
      partial[split * channels + channel] = sum;
    } else {
      result[channel] = static_cast<weight_t>(static_cast<acc_t>(sum.total()));
    }
  }

  // Adds up the partial sums of some channels, in the order of the splits.
  void finish(int64_t splits, int64_t first_channel, int64_t last_channel) const {
    for (int64_t c = first_channel; c < last_channel; ++c) {
      WideSum<acc_t> sum;
      for (int64_t split = 0; split < splits; ++split) {
        sum.add(partial[split * channels + c]);
      }
      result[c] = static_cast<weight_t>(static_cast<acc_t>(sum.total()));
    }
  }
};

template <typename scalar_t, typename weight_t>
struct PreluKernels {
  using acc_t = acc_type<scalar_t>;

  // Tasks first ... last - 1 of output = prelu(input, weight). inputs: {input}
  void (*forward)(
      const ChannelTasks& tasks,
      int64_t first,
      int64_t last,
      const ChannelwiseOperands<scalar_t, weight_t, 1>& operands);

  // The same of prelu_backward. inputs: {grad_output, input}; output: grad_input or null;
  // sums: grad_weight, or nulls.
  void (*backward)(
      const ChannelTasks& tasks,
      int64_t first,
      int64_t last,
      const ChannelwiseOperands<scalar_t, weight_t, 2>& operands,
      const ChannelSums<acc_t, weight_t>& sums);
};

// Compiled once for each of the namespaces that the build names; see prelu.cpp.
#define TORCH_EXT_DECLARE_PRELU_KERNELS(CAPABILITY)        \
  namespace CAPABILITY {                                   \
  template <typename scalar_t, typename weight_t>          \
  const PreluKernels<scalar_t, weight_t>& prelu_kernels(); \
  }
TORCH_EXT_DECLARE_PRELU_KERNELS(DEFAULT)
TORCH_EXT_DECLARE_PRELU_KERNELS(AVX2)
TORCH_EXT_DECLARE_PRELU_KERNELS(AVX512)
#undef TORCH_EXT_DECLARE_PRELU_KERNELS

}  // namespace torch_ext::cpu
