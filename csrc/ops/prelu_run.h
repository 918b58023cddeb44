// PReLU on whichever device has an engine: from tensors to sweeps of its operations. Engine: see
// operators.h.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/DeviceGuard.h>

#include <array>
#include <tuple>
#include <utility>

#include "kernels/prelu.h"
#include "kernels/step.h"
#include "ops/prelu_args.h"
#include "ops/tensors.h"

namespace torch_ext {

template <typename Engine>
at::Tensor prelu_on(const at::Tensor& input, const at::Tensor& weight) {
  const PreluArgs args(input, weight, "prelu", Engine::kSuffix);
  const c10::DeviceGuard guard(input.device());
  const at::Tensor output = Engine::new_output(args.input());
  if (output.numel() > 0) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "prelu", [&] {
      Engine::run(
          args.view(), /*tensors=*/2,
          Engine::template sweep<PreluForward, scalar_t>(
              {args.input().const_data_ptr<scalar_t>()}, {output.mutable_data_ptr<scalar_t>()},
              {channel_input<scalar_t>(args.weight())}, NoStep()));
    });
  }
  return output;
}

// Either gradient may be undefined: it is then not computed.
template <typename Engine, typename scalar_t>
void run_prelu_backward(
    const PreluArgs& args,
    const at::Tensor& grad_output,
    const at::Tensor& grad_input,
    const at::Tensor& grad_weight) {
  const std::array<const scalar_t*, 2> g_and_x{
      grad_output.const_data_ptr<scalar_t>(), args.input().const_data_ptr<scalar_t>()};
  const std::array<scalar_t*, 1> result{
      grad_input.defined() ? grad_input.mutable_data_ptr<scalar_t>() : nullptr};
  const std::array params{channel_input<scalar_t>(args.weight())};
  const auto run = [&](auto sweep) { Engine::run(args.view(), /*tensors=*/3, std::move(sweep)); };
  if (grad_weight.defined()) {
    const StoreSums<scalar_t, 1> step{{channel_output<scalar_t>(grad_weight)}};
    run(Engine::template sweep<PreluBackward, scalar_t>(g_and_x, result, params, step));
  } else {
    using Op = WithoutSums<PreluBackward>;
    run(Engine::template sweep<Op, scalar_t>(g_and_x, result, params, NoStep()));
  }
}

template <typename Engine>
std::tuple<at::Tensor, at::Tensor> prelu_backward_on(
    const at::Tensor& grad_output,
    const at::Tensor& input,
    const at::Tensor& weight,
    std::array<bool, 2> output_mask) {
  const PreluArgs args(input, weight, "prelu_backward", Engine::kSuffix);
  const c10::DeviceGuard guard(input.device());
  const at::Tensor matching = args.match(grad_output);
  const auto [wants_grad_input, wants_grad_weight] = output_mask;
  const at::Tensor grad_input = wants_grad_input ? Engine::new_output(args.input()) : at::Tensor();
  const at::Tensor grad_weight =
      wants_grad_weight ? at::empty_like(weight, at::MemoryFormat::Contiguous) : at::Tensor();
  if (args.input().numel() == 0) {
    if (wants_grad_weight) {
      grad_weight.zero_();
    }
  } else if (wants_grad_input || wants_grad_weight) {
    AT_DISPATCH_FLOATING_TYPES_AND2(
        at::kHalf, at::kBFloat16, input.scalar_type(), "prelu_backward",
        [&] { run_prelu_backward<Engine, scalar_t>(args, matching, grad_input, grad_weight); });
  }
  return {grad_input, grad_weight};
}

}  // namespace torch_ext
