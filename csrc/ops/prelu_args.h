// The operators' arguments, checked and converted to the one layout that kernels know. A device's
// kernel needs a ChannelView, and only PreluArgs creates one, so no check can be forgotten and none
// is repeated. Knows no device and no kernel.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/channel_view.h"

namespace torch_ext {

// Raises what torch.nn.functional.prelu raises for these arguments, in its order and its words;
// reads symbolic sizes only, so Meta and the composites share it.
void check_prelu_rules(const at::Tensor& input, const at::Tensor& weight);

// PyTorch's rule for dtypes, without the pair of 16-bit data and float32 slopes.
void check_same_dtype(const at::Tensor& input, const at::Tensor& weight);

// check_prelu_rules, then device and supported dtype: what PyTorch leaves to its kernels. `name`
// and `suffix` make up the name in dtype errors ("prelu_cpu", "prelu_backward_cuda").
void check_prelu_args(
    const at::Tensor& input, const at::Tensor& weight, const char* name, const char* suffix = "");

// grad_output must have input's shape, dtype and device.
void check_grad_output(const at::Tensor& grad_output, const at::Tensor& input);

class PreluArgs {
 public:
  PreluArgs(
      const at::Tensor& input, const at::Tensor& weight, const char* name, const char* suffix);

  const at::Tensor& input() const { return input_; }    // dense, in any permutation
  const at::Tensor& weight() const { return weight_; }  // contiguous
  const ChannelView& view() const { return view_; }     // of input and of all that matches it

  // A checked grad_output in input's memory order; copied only where its own order differs.
  at::Tensor match(const at::Tensor& grad_output) const;

 private:
  at::Tensor input_;
  at::Tensor weight_;
  ChannelView view_;
};

}  // namespace torch_ext
