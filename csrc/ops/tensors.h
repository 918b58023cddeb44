// What operators know about tensors, whatever they compute: for which ones we have kernels, how
// dense ones fold to the layout of the kernels, and tensors of values per channel. Knows no
// operator and no device.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "kernels/channel_values.h"
#include "kernels/channel_view.h"

namespace torch_ext {

inline bool is_defined(const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() && tensor->defined();
}

// Undefined if there is none.
inline at::Tensor tensor_of(const std::optional<at::Tensor>& tensor) {
  return tensor.value_or(at::Tensor());
}

// Strided memory of ordinary numbers, on whatever device.
bool is_plain(const at::Tensor& tensor);

// Plain, and on a device for which we have kernels (or Meta).
bool is_ours(const at::Tensor& tensor);

// Ours, and the device is one that this library was built for (or Meta).
bool has_kernels_for(const at::Tensor& tensor);

// Sums, statistics and everything between: float32 for 16-bit and float32 data, else float64.
at::ScalarType compute_dtype(const at::Tensor& input);

// Uninitialised, in the layout of input's gradient and of the output. Real and Meta kernels both
// call it, so predicted and real strides cannot differ.
at::Tensor empty_output(const at::Tensor& input);

// `tensor` if it is dense, else a copy in the layout that an output for it has.
at::Tensor as_dense(const at::Tensor& tensor);

// Folds a dense tensor to outer x channels x inner: dimensions in memory order, cut at the
// channels'. One channel: all of it is one run.
ChannelView fold(const at::Tensor& dense, int64_t channels, int64_t channel_dim = 1);

// `tensor` if its elements have the same order in memory as those of `dense`, which has the same
// shape; else a copy in that order.
at::Tensor in_order_of(const at::Tensor& dense, const at::Tensor& tensor);

// Values per channel, as the kernels read and write them: contiguous, of the data's type or of the
// compute type. One value serves all channels.
template <typename scalar_t>
ChannelInput<scalar_t> channel_input(const at::Tensor& values) {
  return {
      values.const_data_ptr(),
      values.scalar_type() == c10::CppTypeToScalarType<compute_type<scalar_t>>::value,
      values.numel() == 1 ? 0 : 1};
}

template <typename scalar_t>
ChannelOutput<scalar_t> channel_output(const at::Tensor& values) {
  return {
      values.mutable_data_ptr(),
      values.scalar_type() == c10::CppTypeToScalarType<compute_type<scalar_t>>::value};
}

}  // namespace torch_ext
