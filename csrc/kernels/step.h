// Steps: what follows the sums of an operation. A step is called once for each channel, when its
// sums are complete. A step has the number of sums, kSums, and
//
//   void operator()(int64_t channel, const std::array<double, kSums>& totals) const
//
// It may store results or compute what the next operation reads as its params. CPU and CUDA.
#pragma once

#include <c10/macros/Macros.h>

#include <array>
#include <cstdint>

#include "kernels/channel_values.h"

namespace torch_ext {

// For an operation without sums.
struct NoStep {
  static constexpr int kSums = 0;

  C10_HOST_DEVICE void operator()(
      int64_t /*channel*/, const std::array<double, 0>& /*totals*/) const {}
};

// For sums that are results themselves: each is rounded and stored.
template <typename scalar_t, int kCount>
struct StoreSums {
  static constexpr int kSums = kCount;

  std::array<ChannelOutput<scalar_t>, kSums> outputs;  // of null: not wanted

  C10_HOST_DEVICE void operator()(int64_t channel, const std::array<double, kSums>& totals) const {
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
    for (int sum = 0; sum < kSums; ++sum) {
      if (outputs[sum].values != nullptr) {
        outputs[sum].write(channel, totals[sum]);
      }
    }
  }
};

}  // namespace torch_ext
