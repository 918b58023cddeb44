#include "ops/tensors.h"

#include <ATen/ops/empty_like.h>

namespace torch_ext {
namespace {

bool same_memory_order(const at::Tensor& a, const at::Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) {
      return false;
    }
  }
  return true;
}

}  // namespace

bool is_plain(const at::Tensor& tensor) {
  return tensor.layout() == at::kStrided && !tensor.is_quantized() && !tensor.is_nested();
}

bool is_ours(const at::Tensor& tensor) {
  return tensor.defined() && is_plain(tensor) &&
         (tensor.is_cpu() || tensor.is_cuda() || tensor.is_meta());
}

bool has_kernels_for(const at::Tensor& tensor) {
#if defined(TORCH_EXT_WITH_CUDA)
  return is_ours(tensor);
#else
  return is_ours(tensor) && !tensor.is_cuda();
#endif
}

at::ScalarType compute_dtype(const at::Tensor& input) {
  return input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

at::Tensor empty_output(const at::Tensor& input) {
  return at::empty_like(input);
}

at::Tensor as_dense(const at::Tensor& tensor) {
  return tensor.is_non_overlapping_and_dense() ? tensor : empty_output(tensor).copy_(tensor);
}

ChannelView fold(const at::Tensor& dense, int64_t channels, int64_t channel_dim) {
  if (channels == 1) {
    return {1, 1, dense.numel()};
  }
  // A dimension lies outside the channels when its stride is larger. Dimensions of size 1 have
  // arbitrary strides, but contribute a factor of 1 on either side.
  ChannelView view{1, channels, 1};
  for (int64_t d = 0; d < dense.dim(); ++d) {
    if (d != channel_dim) {
      (dense.stride(d) > dense.stride(channel_dim) ? view.outer : view.inner) *= dense.size(d);
    }
  }
  return view;
}

at::Tensor in_order_of(const at::Tensor& dense, const at::Tensor& tensor) {
  return same_memory_order(tensor, dense) ? tensor : empty_output(dense).copy_(tensor);
}

}  // namespace torch_ext
