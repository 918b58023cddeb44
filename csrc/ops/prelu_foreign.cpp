#include "ops/prelu_foreign.h"

#include <ATen/ops/_prelu_kernel.h>
#include <torch/library.h>

#include "ops/prelu_args.h"
#include "ops/prelu_composite.h"
#include "ops/tensors.h"

namespace torch_ext {

bool is_foreign(const at::Tensor& input, const at::Tensor& weight) {
  return !is_ours(input) || !is_ours(weight);
}

at::Tensor prelu_foreign(const at::Tensor& input, const at::Tensor& weight) {
  check_prelu_rules(input, weight);
  // at::prelu refuses two dtypes; the composite runs on every device.
  if (input.scalar_type() != weight.scalar_type() && is_plain(input) && is_plain(weight)) {
    return prelu_composite(input, weight);
  }
  check_same_dtype(input, weight);
  return at::_prelu_kernel(input, along_channels(weight, input.dim()));
}

TORCH_LIBRARY_IMPL(torch_ext, CompositeExplicitAutograd, m) {
  m.impl("prelu", prelu_foreign);
  m.impl("prelu_backward", prelu_backward_composite);
}

}  // namespace torch_ext
