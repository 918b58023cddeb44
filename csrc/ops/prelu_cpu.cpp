// The operators on CPU tensors: from checked tensors to pointers and sweeps of the engine.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "kernels/cpu/launch.h"
#include "kernels/prelu.h"
#include "kernels/step.h"
#include "ops/huge_pages.h"
#include "ops/knobs.h"
#include "ops/prelu_args.h"
#include "ops/tensors.h"

namespace torch_ext {
namespace {

at::Tensor new_output(const at::Tensor& dense_input) {
  at::Tensor output = empty_output(dense_input);
  advise_huge_pages(output);
  return output;
}

template <typename scalar_t>
void forward(const PreluArgs& args, const at::Tensor& output) {
  const cpu::Operands<PreluForward, scalar_t> operands{
      {args.input().const_data_ptr<scalar_t>()},
      {output.mutable_data_ptr<scalar_t>()},
      {channel_input<scalar_t>(args.weight())}};
  cpu::run(args.view(), knobs().nt_stores, cpu::Sweep(operands, NoStep()));
}

template <typename Op, typename scalar_t>
cpu::Operands<Op, scalar_t> backward_operands(
    const PreluArgs& args, const at::Tensor& grad_output, const at::Tensor& grad_input) {
  return {
      {grad_output.const_data_ptr<scalar_t>(), args.input().const_data_ptr<scalar_t>()},
      {grad_input.defined() ? grad_input.mutable_data_ptr<scalar_t>() : nullptr},
      {channel_input<scalar_t>(args.weight())}};
}

// Either gradient may be undefined: it is then not computed.
template <typename scalar_t>
void backward(
    const PreluArgs& args,
    const at::Tensor& grad_output,
    const at::Tensor& grad_input,
    const at::Tensor& grad_weight) {
  if (grad_weight.defined()) {
    const StoreSums<scalar_t, 1> step{{channel_output<scalar_t>(grad_weight)}};
    const auto operands = backward_operands<PreluBackward, scalar_t>(args, grad_output, grad_input);
    cpu::run(args.view(), knobs().nt_stores, cpu::Sweep(operands, step));
  } else {
    using Op = WithoutSums<PreluBackward>;
    const auto operands = backward_operands<Op, scalar_t>(args, grad_output, grad_input);
    cpu::run(args.view(), knobs().nt_stores, cpu::Sweep(operands, NoStep()));
  }
}

at::Tensor prelu_cpu(const at::Tensor& input, const at::Tensor& weight) {
  const PreluArgs args(input, weight, "prelu_cpu");
  at::Tensor output = new_output(args.input());
  if (output.numel() > 0) {
    AT_DISPATCH_FLOATING_TYPES_AND2(
        at::kHalf, at::kBFloat16, input.scalar_type(), "prelu_cpu",
        [&] { forward<scalar_t>(args, output); });
  }
  return output;
}

std::tuple<at::Tensor, at::Tensor> prelu_backward_cpu(
    const at::Tensor& grad_output,
    const at::Tensor& input,
    const at::Tensor& weight,
    std::array<bool, 2> output_mask) {
  const PreluArgs args(input, weight, "prelu_backward_cpu");
  const at::Tensor matching_grad_output = args.match(grad_output);
  at::Tensor grad_input, grad_weight;
  if (output_mask[0]) {
    grad_input = new_output(args.input());
  }
  if (output_mask[1]) {
    grad_weight = at::empty_like(weight, at::MemoryFormat::Contiguous);
  }
  if (args.view().numel() == 0) {
    if (grad_weight.defined()) {
      grad_weight.zero_();
    }
  } else if (output_mask[0] || output_mask[1]) {
    AT_DISPATCH_FLOATING_TYPES_AND2(
        at::kHalf, at::kBFloat16, input.scalar_type(), "prelu_backward_cpu",
        [&] { backward<scalar_t>(args, matching_grad_output, grad_input, grad_weight); });
  }
  return {grad_input, grad_weight};
}

}  // namespace

TORCH_LIBRARY_IMPL(torch_ext, CPU, m) {
  m.impl("prelu", prelu_cpu);
  m.impl("prelu_backward", prelu_backward_cpu);
}

}  // namespace torch_ext
