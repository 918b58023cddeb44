// The two operators: schemas, C++ entries and Meta kernels. Knows no device and no derivative.
#include <torch_ext/prelu.h>

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "ops/norm_prelu.h"
#include "ops/prelu_args.h"
#include "ops/tensors.h"

namespace torch_ext {
namespace {

at::Tensor prelu_meta(const at::Tensor& input, const at::Tensor& weight) {
  check_prelu_args(input, weight, "prelu", "_meta");
  return empty_output(input);
}

std::tuple<at::Tensor, at::Tensor> prelu_backward_meta(
    const at::Tensor& grad_output,
    const at::Tensor& input,
    const at::Tensor& weight,
    std::array<bool, 2> output_mask) {
  check_prelu_args(input, weight, "prelu_backward", "_meta");
  check_grad_output(grad_output, input);
  return {
      output_mask[0] ? empty_output(input) : at::Tensor(),
      output_mask[1] ? at::empty_like(weight, at::MemoryFormat::Contiguous) : at::Tensor()};
}

}  // namespace

at::Tensor prelu(const at::Tensor& input, const at::Tensor& weight) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("torch_ext::prelu", "")
                             .typed<decltype(prelu)>();
  return op.call(input, weight);
}

std::tuple<at::Tensor, at::Tensor> prelu_backward(
    const at::Tensor& grad_output,
    const at::Tensor& input,
    const at::Tensor& weight,
    std::array<bool, 2> output_mask) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("torch_ext::prelu_backward", "")
                             .typed<decltype(prelu_backward)>();
  return op.call(grad_output, input, weight, output_mask);
}

TORCH_LIBRARY(torch_ext, m) {
  // flexible_layout: every kernel takes any strides, so a compiler need not insert copies to keep
  // them.
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag, at::Tag::flexible_layout};
  m.def("prelu(Tensor input, Tensor weight) -> Tensor", tags);
  m.def(
      "prelu_backward(Tensor grad_output, Tensor input, Tensor weight, bool[2] output_mask)"
      " -> (Tensor grad_input, Tensor grad_weight)",
      tags);
  define_norm_prelu(m);
}

TORCH_LIBRARY_IMPL(torch_ext, Meta, m) {
  m.impl("prelu", prelu_meta);
  m.impl("prelu_backward", prelu_backward_meta);
}

}  // namespace torch_ext
