// What the walkers read and write, as pointers. Knows no layout and no operation.
#pragma once

#include <cstdint>

namespace torch_ext::cuda {

// Values of the channels: in the data's type or in the accumulation type. Which one is known at run
// time only: each is used for many elements, and half as many kernels are needed.
template <typename scalar_t, typename acc_t>
struct ChannelInput {
  const void* values;
  bool is_acc_type;

  __device__ __forceinline__ acc_t operator[](int64_t channel) const {
    return is_acc_type ? static_cast<const acc_t*>(values)[channel]
                       : static_cast<acc_t>(static_cast<const scalar_t*>(values)[channel]);
  }
};

template <typename scalar_t, typename acc_t>
struct ChannelOutput {
  void* values;
  bool is_acc_type;

  __device__ __forceinline__ void write(int64_t channel, acc_t value) const {
    if (is_acc_type) {
      static_cast<acc_t*>(values)[channel] = value;
    } else {
      static_cast<scalar_t*>(values)[channel] = static_cast<scalar_t>(value);
    }
  }
};

// acc_t: arithmetic and sums.
template <typename scalar_t, typename acc_t>
struct Operands {
  using scalar_type = scalar_t;

  const scalar_t* input;
  const scalar_t* grad_output;  // null, if the operation does not read it
  scalar_t* output;             // null: not wanted
  ChannelInput<scalar_t, acc_t> weight;
  ChannelOutput<scalar_t, acc_t> grad_weight;
  acc_t* partials;  // a row of channels for each split, where a second kernel finishes
  int input_shift;  // elements from a 16-byte boundary to where the walk's slots start
  int grad_output_shift;
};

}  // namespace torch_ext::cuda
