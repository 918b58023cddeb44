// The arguments of norm + PReLU, checked and converted to the one layout that kernels know, as
// PreluArgs does for PReLU. Knows no device and no kernel.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "kernels/channel_view.h"
#include "ops/tensors.h"

namespace torch_ext {

// What torch.nn.functional.batch_norm and instance_norm raise before any kernel runs, in their
// words. Read symbolic sizes only.
void check_batch_norm_rules(
    const at::Tensor& input,
    const std::optional<at::Tensor>& running_mean,
    const std::optional<at::Tensor>& running_var,
    bool training,
    double eps);
void check_instance_norm_rules(
    const at::Tensor& input,
    const std::optional<at::Tensor>& running_mean,
    const std::optional<at::Tensor>& running_var,
    bool use_input_stats,
    double eps);

// The data and the parameters of the internal operators. Each parameter has input's dtype, or
// float32 with 16-bit data. The slope is checked last, as the PReLU that follows a norm would.
void check_norm_prelu_args(
    const at::Tensor& input,
    const at::Tensor& slope,
    const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias);

// Statistics: of shape (C), or of shape (N, C) for instance norm. Returns which.
bool check_statistics(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var);

// Uninitialised results. Real and Meta kernels both call these.
at::Tensor empty_statistics(const at::Tensor& input, bool instance);
at::Tensor empty_gradient(bool wanted, const std::optional<at::Tensor>& parameter);

class NormPreluArgs {
 public:
  // Statistics are yet to be found: of each channel, or (instance) of each sample's channels.
  NormPreluArgs(
      const at::Tensor& input,
      const at::Tensor& slope,
      const std::optional<at::Tensor>& weight,
      const std::optional<at::Tensor>& bias,
      bool instance);

  // Statistics are given.
  NormPreluArgs(
      const at::Tensor& input,
      const at::Tensor& slope,
      const std::optional<at::Tensor>& weight,
      const std::optional<at::Tensor>& bias,
      const at::Tensor& mean,
      const at::Tensor& var);

  const at::Tensor& input() const { return input_; }    // dense
  const at::Tensor& slope() const { return slope_; }    // contiguous
  const at::Tensor& weight() const { return weight_; }  // contiguous, or undefined
  const at::Tensor& bias() const { return bias_; }      // contiguous, or undefined
  const at::Tensor& mean() const { return mean_; }      // contiguous, where it was given
  const at::Tensor& var() const { return var_; }        // likewise

  int64_t channels() const { return channels_; }
  int64_t samples() const { return samples_; }  // with statistics of their own; batch norm: 1
  int64_t statistics() const { return samples_ * channels_; }

  // The input consists of `runs` consecutive pieces with this view, whose channels are the
  // statistics in their order.
  const ChannelView& view() const { return view_; }
  int64_t runs() const { return runs_; }

  // A checked grad_output in input's memory order; copied only where its own order differs.
  at::Tensor match(const at::Tensor& grad_output) const;

  // A result that has the memory order of input() in the order that an output has.
  at::Tensor in_order_of_caller(const at::Tensor& result) const;

 private:
  void set_view(bool instance);

  at::Tensor dense_;  // as the caller has it
  at::Tensor input_;
  at::Tensor slope_;
  at::Tensor weight_;
  at::Tensor bias_;
  at::Tensor mean_;
  at::Tensor var_;
  int64_t channels_ = 0;
  int64_t samples_ = 1;
  int64_t runs_ = 1;
  ChannelView view_{};
};

}  // namespace torch_ext
