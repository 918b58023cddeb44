// torch_ext::prelu and torch_ext::prelu_backward for CUDA tensors: from checked tensors to pointers
// and the engine of kernels/cuda. Knows no formula and no layout.
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <array>
#include <tuple>

#include "kernels/cuda/launch.h"
#include "kernels/operation.h"
#include "kernels/prelu.h"
#include "kernels/step.h"
#include "ops/prelu_args.h"
#include "ops/tensors.h"

namespace torch_ext {
namespace {

template <typename scalar_t>
void forward(const PreluArgs& args, const at::Tensor& output) {
  cuda::Operands<PreluForward, scalar_t> operands{};
  operands.inputs = {args.input().const_data_ptr<scalar_t>()};
  operands.outputs = {output.mutable_data_ptr<scalar_t>()};
  operands.params = {channel_input<scalar_t>(args.weight())};
  cuda::run(args.view(), operands);
}

template <typename Op, typename scalar_t>
cuda::Operands<Op, scalar_t> backward_operands(
    const PreluArgs& args, const at::Tensor& grad_output, const at::Tensor& grad_input) {
  cuda::Operands<Op, scalar_t> operands{};
  operands.inputs = {
      grad_output.const_data_ptr<scalar_t>(), args.input().const_data_ptr<scalar_t>()};
  operands.outputs = {grad_input.defined() ? grad_input.mutable_data_ptr<scalar_t>() : nullptr};
  operands.params = {channel_input<scalar_t>(args.weight())};
  return operands;
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
    cuda::run(
        args.view(), backward_operands<PreluBackward, scalar_t>(args, grad_output, grad_input),
        step);
  } else {
    using Op = WithoutSums<PreluBackward>;
    cuda::run(args.view(), backward_operands<Op, scalar_t>(args, grad_output, grad_input));
  }
}

at::Tensor prelu_cuda(const at::Tensor& input, const at::Tensor& weight) {
  const PreluArgs args(input, weight, "prelu_cuda");
  const c10::cuda::CUDAGuard guard(args.input().device());
  at::Tensor output = empty_output(args.input());
  if (output.numel() > 0) {
    AT_DISPATCH_FLOATING_TYPES_AND2(
        at::kHalf, at::kBFloat16, input.scalar_type(), "prelu_cuda",
        [&] { forward<scalar_t>(args, output); });
  }
  return output;
}

std::tuple<at::Tensor, at::Tensor> prelu_backward_cuda(
    const at::Tensor& grad_output,
    const at::Tensor& input,
    const at::Tensor& weight,
    std::array<bool, 2> output_mask) {
  const PreluArgs args(input, weight, "prelu_backward_cuda");
  const c10::cuda::CUDAGuard guard(args.input().device());
  const at::Tensor matching_grad_output = args.match(grad_output);
  const bool empty = args.input().numel() == 0;
  at::Tensor grad_input, grad_weight;
  if (output_mask[0]) {
    grad_input = empty_output(args.input());
  }
  if (output_mask[1]) {
    grad_weight = empty ? at::zeros(weight.sizes(), weight.options())
                        : at::empty(weight.sizes(), weight.options());
  }
  if (!empty && (output_mask[0] || output_mask[1])) {
    AT_DISPATCH_FLOATING_TYPES_AND2(
        at::kHalf, at::kBFloat16, input.scalar_type(), "prelu_backward_cuda",
        [&] { backward<scalar_t>(args, matching_grad_output, grad_input, grad_weight); });
  }
  return {grad_input, grad_weight};
}

}  // namespace

TORCH_LIBRARY_IMPL(torch_ext, CUDA, m) {
  m.impl("prelu", &prelu_cuda);
  m.impl("prelu_backward", &prelu_backward_cuda);
}

}  // namespace torch_ext
