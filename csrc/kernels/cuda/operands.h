// What an operation's kernels read and write, as pointers. Knows no layout.
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
  // The partials: for each split, one sum after the other, a row of channels each. For the second
  // kernel.
  compute_type<scalar_t>* partials;
};

}  // namespace torch_ext::cuda
