// Tensors with one value per channel, as kernels read and write them.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/channel_values.h"

namespace torch_ext {

// Contiguous, of data's type or of the compute type; one value serves all channels.
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
