// Norm + PReLU on whichever device has an engine: from tensors to sweeps of its operations. Engine:
// see operators.h.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>

#include "kernels/norm_prelu.h"
#include "kernels/norm_prelu_steps.h"
#include "kernels/step.h"
#include "ops/norm_prelu.h"
#include "ops/norm_prelu_args.h"
#include "ops/prelu_args.h"
#include "ops/tensors.h"

namespace torch_ext {

// Rows of a value for each statistic, where the input is.
template <typename T>
class Rows {
 public:
  Rows(int64_t rows, int64_t statistics, const at::Tensor& input)
      : memory_(
            at::empty(
                {rows, statistics}, input.options().dtype(c10::CppTypeToScalarType<T>::value))) {}

  T* operator[](int64_t row) const { return memory_.mutable_data_ptr<T>() + row * memory_.size(1); }

 private:
  at::Tensor memory_;
};

// One run of the input: its elements, its statistics, and what its operations read as params.
template <typename scalar_t, typename Engine>
class NormPreluRun {
 public:
  using compute_t = compute_type<scalar_t>;
  using Param = ChannelInput<scalar_t>;

  NormPreluRun(const NormPreluArgs& args, double eps, int64_t index)
      : args_(args), eps_(eps), index_(index), rows_(kRows, args.view().channels, args.input()) {}

  // By its own statistics, which are results. If the shift was far from the mean, everything is
  // done a second time with the mean as the shift. This is rare, and does not depend on the number
  // of threads.
  void normalise(const at::Tensor& output, const at::Tensor& mean, const at::Tensor& var) const {
    const int64_t statistics = view().channels;
    const Rows<bool> far(Engine::kMayLookTwice ? 1 : 0, statistics, args_.input());
    compute_t* const mean_here = mean.mutable_data_ptr<compute_t>() + first_statistic();
    compute_t* const var_here = var.mutable_data_ptr<compute_t>() + first_statistic();
    Engine::for_each(
        statistics, BeforeMoments<scalar_t>{
                        {x(), view()},
                        weight(),
                        bias(),
                        slope(),
                        rows_[kShift],
                        rows_[kScale],
                        rows_[kBias],
                        rows_[kSlope]});
    const StatisticsFromMoments<scalar_t> step{
        share(),
        eps_,
        rows_[kShift],
        rows_[kScale],
        mean_here,
        var_here,
        Engine::kMayLookTwice ? far[0] : nullptr};
    const auto sweeps = [&] {
      Engine::run(
          view(), /*tensors=*/2,
          Engine::template sweep<Moments, scalar_t>({x()}, {}, {param(kShift)}, step),
          forward_to(output, {mean_here, /*is_compute_type=*/true, /*stride=*/1}));
    };
    sweeps();
    if constexpr (Engine::kMayLookTwice) {
      if (std::find(far[0], far[1], true) != far[1]) {
        for (int64_t i = 0; i < statistics; ++i) {
          rows_[kShift][i] = far[0][i] ? mean_here[i] : rows_[kShift][i];
          rows_[kScale][i] = weight()[i];
        }
        sweeps();
      }
    }
  }

  // By given statistics.
  void normalise(const at::Tensor& output) const {
    prepare_params();
    Engine::run(view(), /*tensors=*/2, forward_to(output, mean()));
  }

  // `grad_input` may be undefined, `shares` (rows for GradientsFromSums) null: not wanted.
  void differentiate(
      const at::Tensor& grad_output,
      const at::Tensor& grad_input,
      const Rows<double>* shares,
      bool training) const {
    prepare_params();
    const std::array<const scalar_t*, 2> g_and_x{
        grad_output.const_data_ptr<scalar_t>() + first_element(), x()};
    const std::array<scalar_t*, 1> result{
        grad_input.defined() ? grad_input.mutable_data_ptr<scalar_t>() + first_element() : nullptr};
    const std::array<Param, 4> params{mean(), param(kScale), param(kBias), param(kSlope)};
    if (shares == nullptr) {
      using Op = WithoutSums<NormPreluReduce>;
      return run_alone(Engine::template sweep<Op, scalar_t>(g_and_x, result, params, NoStep()));
    }
    const bool through_statistics = training && grad_input.defined();
    const GradientsFromSums<scalar_t> step{
        share(),
        eps_,
        var(),
        rows_[kScale],
        (*shares)[0] + first_statistic(),
        (*shares)[1] + first_statistic(),
        (*shares)[2] + first_statistic(),
        through_statistics ? rows_[kOffset] : nullptr,
        through_statistics ? rows_[kFactor] : nullptr};
    if (!training) {
      using Op = NormPreluReduce;
      return run_alone(Engine::template sweep<Op, scalar_t>(g_and_x, result, params, step));
    }
    auto reduce = Engine::template sweep<WithoutOutputs<NormPreluReduce>, scalar_t>(
        g_and_x, {}, params, step);
    if (!through_statistics) {
      return run_alone(std::move(reduce));
    }
    Engine::run(
        view(), /*tensors=*/3, std::move(reduce),
        Engine::template sweep<NormPreluApply, scalar_t>(
            g_and_x, result,
            {params[0], params[1], params[2], params[3], param(kOffset), param(kFactor)},
            NoStep()));
  }

 private:
  enum Row { kScale, kBias, kSlope, kShift, kOffset = kShift, kFactor, kRows };

  const ChannelView& view() const { return args_.view(); }
  int64_t first_element() const { return index_ * view().numel(); }
  int64_t first_statistic() const { return index_ * view().channels; }
  double share() const { return 1 / static_cast<double>(view().outer * view().inner); }

  const scalar_t* x() const {
    return args_.input().template const_data_ptr<scalar_t>() + first_element();
  }

  Param param(Row row) const { return {rows_[row], /*is_compute_type=*/true, /*stride=*/1}; }

  // The given statistics of this run.
  Param mean() const { return statistic(args_.mean()); }
  Param var() const { return statistic(args_.var()); }
  Param statistic(const at::Tensor& values) const {
    Param all = channel_input<scalar_t>(values);
    const auto bytes = first_statistic() * static_cast<int64_t>(values.itemsize());
    all.values = static_cast<const char*>(all.values) + bytes;
    return all;
  }

  NormParameter<scalar_t> weight() const { return parameter(args_.weight(), 1); }
  NormParameter<scalar_t> bias() const { return parameter(args_.bias(), 0); }
  NormParameter<scalar_t> slope() const { return parameter(args_.slope(), 0); }
  NormParameter<scalar_t> parameter(const at::Tensor& values, compute_t otherwise) const {
    const Param none{nullptr, true, 0};
    return {values.defined() ? channel_input<scalar_t>(values) : none, args_.channels(), otherwise};
  }

  void prepare_params() const {
    Engine::for_each(
        view().channels,
        ParamsFromStatistics<scalar_t>{
            eps_, var(), weight(), bias(), slope(), rows_[kScale], rows_[kBias], rows_[kSlope]});
  }

  auto forward_to(const at::Tensor& output, const Param& mean) const {
    return Engine::template sweep<NormPreluForward, scalar_t>(
        {x()}, {output.mutable_data_ptr<scalar_t>() + first_element()},
        {mean, param(kScale), param(kBias), param(kSlope)}, NoStep());
  }

  template <typename Sweep>
  void run_alone(Sweep sweep) const {
    Engine::run(view(), /*tensors=*/3, std::move(sweep));
  }

  const NormPreluArgs& args_;
  double eps_;
  int64_t index_;
  Rows<compute_t> rows_;
};

// function(run) for each run of the input, which is not empty.
template <typename Engine, typename Function>
void for_each_run(const NormPreluArgs& args, double eps, const Function& function) {
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, args.input().scalar_type(), "batch_norm", [&] {
        for (int64_t run = 0; run < args.runs(); ++run) {
          function(NormPreluRun<scalar_t, Engine>(args, eps, run));
        }
      });
}

// The operators of norm_prelu.h.
template <typename Engine>
std::tuple<at::Tensor, at::Tensor, at::Tensor> norm_prelu_on(
    const at::Tensor& input,
    const at::Tensor& slope,
    const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias,
    double eps,
    bool instance) {
  const NormPreluArgs args(input, slope, weight, bias, instance);
  const c10::DeviceGuard guard(input.device());
  const at::Tensor output = Engine::new_output(args.input());
  const at::Tensor mean = empty_statistics(args.input(), instance);
  const at::Tensor var = empty_statistics(args.input(), instance);
  if (output.numel() == 0) {
    return {output, mean.zero_(), var.zero_()};
  }
  for_each_run<Engine>(args, eps, [&](const auto& run) { run.normalise(output, mean, var); });
  return {args.in_order_of_caller(output), mean, var};
}

template <typename Engine>
at::Tensor norm_prelu_eval_on(
    const at::Tensor& input,
    const at::Tensor& slope,
    const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias,
    const at::Tensor& given_mean,
    const at::Tensor& given_var,
    double eps) {
  const NormPreluArgs args(input, slope, weight, bias, given_mean, given_var);
  const c10::DeviceGuard guard(input.device());
  const at::Tensor output = Engine::new_output(args.input());
  if (output.numel() > 0) {
    for_each_run<Engine>(args, eps, [&](const auto& run) { run.normalise(output); });
  }
  return args.in_order_of_caller(output);
}

template <typename Engine>
NormPreluGradients norm_prelu_backward_on(
    const at::Tensor& grad_output,
    const at::Tensor& input,
    const at::Tensor& slope,
    const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias,
    const at::Tensor& given_mean,
    const at::Tensor& given_var,
    double eps,
    bool training,
    std::array<bool, 4> output_mask) {
  const NormPreluArgs args(input, slope, weight, bias, given_mean, given_var);
  const c10::DeviceGuard guard(input.device());
  const at::Tensor matching = args.match(grad_output);
  const bool wants_grad_input = output_mask[0];
  // (In the order of GradientsFromSums.)
  const std::array gradients{
      empty_gradient(output_mask[3], bias), empty_gradient(output_mask[2], weight),
      empty_gradient(output_mask[1], slope)};
  const at::Tensor grad_input = wants_grad_input ? Engine::new_output(args.input()) : at::Tensor();
  const bool empty = args.input().numel() == 0;
  const bool wants_sums = (training && wants_grad_input) ||
                          std::any_of(
                              gradients.begin(), gradients.end(),
                              [](const at::Tensor& gradient) { return gradient.defined(); });
  const Rows<double> shares(wants_sums ? 3 : 0, args.statistics(), args.input());
  if (!empty && (wants_sums || wants_grad_input)) {
    for_each_run<Engine>(args, eps, [&](const auto& run) {
      run.differentiate(matching, grad_input, wants_sums ? &shares : nullptr, training);
    });
  }
  for (int row = 0; row < 3; ++row) {
    const at::Tensor& gradient = gradients[row];
    if (gradient.defined() && empty) {
      gradient.zero_();
    } else if (gradient.defined()) {
      Engine::add_shares(shares[row], args.statistics(), gradient);
    }
  }
  return {
      wants_grad_input ? args.in_order_of_caller(grad_input) : grad_input, gradients[2],
      gradients[1], gradients[0]};
}

}  // namespace torch_ext
