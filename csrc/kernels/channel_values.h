// Values per channel in memory, in the data's type or in the compute type. Which of the two is a
// run-time flag: a value is read once for many elements, so the flag costs little, and the loops
// are compiled once instead of twice. CPU and CUDA.
#pragma once

#include <c10/macros/Macros.h>

#include <cstdint>
#include <limits>

#include "kernels/operation.h"

namespace torch_ext {

template <typename scalar_t>
struct ChannelInput {
  using compute_t = compute_type<scalar_t>;

  const void* values;
  bool is_compute_type;
  int64_t stride;  // 1, or 0: all channels share the first value

  // A NaN is returned with its lower bits zero. Rounding a float to bfloat16 then needs no special
  // case for NaN: arithmetic propagates the NaN of an operand, and the lower bits of widened 16-bit
  // elements are zero, too.
  C10_HOST_DEVICE C10_ALWAYS_INLINE compute_t operator[](int64_t channel) const {
    const compute_t value =
        is_compute_type
            ? static_cast<const compute_t*>(values)[channel * stride]
            : static_cast<compute_t>(static_cast<const scalar_t*>(values)[channel * stride]);
    // NOLINTNEXTLINE(misc-redundant-expression): false for NaN
    return value == value ? value : std::numeric_limits<compute_t>::quiet_NaN();
  }
};

template <typename scalar_t>
struct ChannelOutput {
  using compute_t = compute_type<scalar_t>;

  void* values;
  bool is_compute_type;

  // `value` is rounded once to the compute type and, for 16-bit values, once more.
  C10_HOST_DEVICE C10_ALWAYS_INLINE void write(int64_t channel, double value) const {
    const auto rounded = static_cast<compute_t>(value);
    if (is_compute_type) {
      static_cast<compute_t*>(values)[channel] = rounded;
    } else {
      static_cast<scalar_t*>(values)[channel] = static_cast<scalar_t>(rounded);
    }
  }
};

}  // namespace torch_ext
