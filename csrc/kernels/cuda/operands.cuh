// What an operation's kernels read and write, as pointers, and what they do with finished sums.
// Knows no layout.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/channel_values.h"
#include "kernels/operation.h"

namespace torch_ext::cuda {

template <typename Op, typename scalar_t>
struct Operands {
  static_assert(Op::kInputs >= 1 && Op::kOutputs <= 1, "stores are aligned for one output");

  std::array<const scalar_t*, Op::kInputs> inputs;
  std::array<scalar_t*, Op::kOutputs> outputs;  // null: not wanted
  std::array<ChannelInput<scalar_t>, Op::kParams> params;

  // Filled in by the launch.
  std::array<int, Op::kInputs> shifts;  // elements from a 16-byte boundary to where packs start
  // A row of channels for each split, one sum behind the other, where a second kernel finishes.
  compute_type<scalar_t>* partials;
};

// A *step* takes the finished sums of a channel. It has their number, kSums, and is called once for
// each channel, by some thread: step(channel, totals).

struct NoStep {
  static constexpr int kSums = 0;

  __device__ __forceinline__ void operator()(
      int64_t /*channel*/, const std::array<double, 0>& /*totals*/) const {}
};

// Sums that are results as they are.
template <typename scalar_t, int kCount>
struct StoreSums {
  static constexpr int kSums = kCount;

  std::array<ChannelOutput<scalar_t>, kSums> outputs;  // of null: not wanted

  __device__ __forceinline__ void operator()(
      int64_t channel, const std::array<double, kSums>& totals) const {
#pragma unroll
    for (int sum = 0; sum < kSums; ++sum) {
      if (outputs[sum].values != nullptr) {
        outputs[sum].write(channel, totals[sum]);
      }
    }
  }
};

}  // namespace torch_ext::cuda
