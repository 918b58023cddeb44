// Norm + PReLU for each statistic, before, between and after the sweeps over the elements
// (norm_prelu.h): a shift for the moments, the statistics, the params of the operations, the
// gradients. Host and device run the same lines.
//
// A statistic is a channel's for batch norm, a sample's channel for instance norm. Its parameters
// are its channel's.
#pragma once

#include <c10/macros/Macros.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/channel_values.h"
#include "kernels/channel_view.h"
#include "kernels/operation.h"

namespace torch_ext {

// One of the norm's parameters, or the slope, as each statistic sees it.
template <typename scalar_t>
struct NormParameter {
  using compute_t = compute_type<scalar_t>;

  ChannelInput<scalar_t> values;  // of null: there is none
  int64_t channels;
  compute_t otherwise;  // where there is none

  C10_HOST_DEVICE C10_ALWAYS_INLINE compute_t operator[](int64_t statistic) const {
    if (values.values == nullptr) {
      return otherwise;
    }
    return values[statistic < channels ? statistic : statistic % channels];  // (divisions are slow)
  }
};

// Forward and backward both take it from the variance as it is saved, so that z has the same bits.
// (On a GPU a division in double is a call, which costs registers.)
C10_HOST_DEVICE inline double reciprocal_deviation(double var, double eps) {
#if defined(__CUDA_ARCH__)
  return ::rsqrt(var + eps);
#else
  return 1 / std::sqrt(var + eps);
#endif
}

// A value near most elements of a channel: the median of a few that are scattered over it. A
// channel's mean lies within one deviation of its median, whatever the distribution; a single
// element (the first, a border's) may lie anywhere. What is not finite is no shift.
template <typename scalar_t>
class ShiftOfChannel {
 public:
  using compute_t = compute_type<scalar_t>;

  ShiftOfChannel(const scalar_t* x, const ChannelView& view) : x_(x), inner_(view.inner) {
    const int64_t count = view.outer * view.inner;
    samples_ = static_cast<int>(
        std::clamp<int64_t>(count / kElementsForASample, kFewestSamples, kMostSamples));
    double position = 0.5;
    for (int i = 0; i < samples_; ++i) {
      // Multiples of the golden section, so that no pattern of the data has their period.
      position += 0.6180339887498949;
      position -= position >= 1 ? 1 : 0;
      const auto element = static_cast<int64_t>(position * static_cast<double>(count));
      const int64_t row = element / view.inner;
      offsets_[i] = row * view.channels * view.inner + element % view.inner;
    }
  }

  C10_HOST_DEVICE compute_t operator[](int64_t channel) const {
    std::array<compute_t, kMostSamples> sorted;
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
    for (int i = 0; i < kMostSamples; ++i) {
      sorted[i] = std::numeric_limits<compute_t>::infinity();
    }
    int found = 0;
    for (int i = 0; i < samples_; ++i) {
      const auto value = static_cast<compute_t>(x_[offsets_[i] + channel * inner_]);
      if (std::abs(value) <= std::numeric_limits<compute_t>::max()) {  // finite
        insert(sorted, found, value);
        ++found;
      }
    }
    compute_t median = 0;
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
    for (int i = 0; i < kMostSamples; ++i) {
      median = select(i < found && i == found / 2, sorted[i], median);
    }
    return median;
  }

 private:
  static constexpr int kFewestSamples = 3;
  static constexpr int kMostSamples = 15;
  static constexpr int64_t kElementsForASample = 128;  // few elements are not worth many samples

  // Among the first `count`. On a GPU every place is compared, so that indices are constants and
  // all stays in registers.
  C10_HOST_DEVICE static void insert(
      std::array<compute_t, kMostSamples>& sorted, [[maybe_unused]] int count, compute_t value) {
#if defined(__CUDA_ARCH__)
    const int last = kMostSamples - 1;
#pragma unroll
#else
    const int last = count;
#endif
    for (int i = 0; i <= last; ++i) {
      const bool before = value < sorted[i];
      const compute_t larger = select(before, sorted[i], value);
      sorted[i] = select(before, value, sorted[i]);
      value = larger;
    }
  }

  const scalar_t* x_;
  int64_t inner_;
  int samples_;
  std::array<int64_t, kMostSamples> offsets_{};  // of the samples of channel 0
};

// The params of the output as far as they do not depend on its statistics (of the scale, the
// weight), and the shift of the moments.
template <typename scalar_t>
struct BeforeMoments {
  using compute_t = compute_type<scalar_t>;

  ShiftOfChannel<scalar_t> shift_of;
  NormParameter<scalar_t> weight_of, bias_of, slope_of;
  compute_t *shift, *scale, *bias, *slope;  // results

  C10_HOST_DEVICE void operator()(int64_t i) const {
    shift[i] = shift_of[i];
    scale[i] = weight_of[i];
    bias[i] = bias_of[i];
    slope[i] = slope_of[i];
  }
};

// Statistics from moments about a shift. A step of Moments.
template <typename scalar_t>
struct StatisticsFromMoments {
  using compute_t = compute_type<scalar_t>;
  static constexpr int kSums = 2;
  // Squares of deviations from the shift, in variances: beyond it the sums lose digits that count.
  static constexpr double kFar = 8;

  double share;  // of an element in a statistic: 1 / their number
  double eps;
  const compute_t* shift;
  compute_t* scale;       // the weight before, a result after
  compute_t *mean, *var;  // results; var is biased
  bool* far;              // whether the shift was too far from the mean; null: do not tell

  C10_HOST_DEVICE void operator()(int64_t i, const std::array<double, 2>& sums) const {
    const double from_shift = sums[0] * share;
    const double square = from_shift * from_shift;
    const double difference = sums[1] * share - square;
    const double variance = difference < 0 ? 0 : difference;  // (NaN stays)
    mean[i] = static_cast<compute_t>(static_cast<double>(shift[i]) + from_shift);
    var[i] = static_cast<compute_t>(variance);
    scale[i] = static_cast<compute_t>(
        static_cast<double>(scale[i]) * reciprocal_deviation(static_cast<double>(var[i]), eps));
    if (far != nullptr) {
      far[i] = square > kFar * variance;
    }
  }
};

// The params of an operation whose statistics are known.
template <typename scalar_t>
struct ParamsFromStatistics {
  using compute_t = compute_type<scalar_t>;

  double eps;
  ChannelInput<scalar_t> var;
  NormParameter<scalar_t> weight_of, bias_of, slope_of;
  compute_t *scale, *bias, *slope;  // results

  C10_HOST_DEVICE void operator()(int64_t i) const {
    scale[i] = static_cast<compute_t>(
        static_cast<double>(weight_of[i]) * reciprocal_deviation(static_cast<double>(var[i]), eps));
    bias[i] = bias_of[i];
    slope[i] = slope_of[i];
  }
};

// Each statistic's share of its parameters' gradients, and what of the input's gradient passes
// through the statistics. A step of NormPreluReduce.
template <typename scalar_t>
struct GradientsFromSums {
  using compute_t = compute_type<scalar_t>;
  static constexpr int kSums = 3;

  double share;  // of an element in a statistic: 1 / their number
  double eps;
  ChannelInput<scalar_t> var;
  const compute_t* scale;
  double *bias, *weight, *slope;  // results: shares of the gradients
  compute_t *offset, *factor;     // results; null: not wanted

  // dL/dx = scale * (gz - mean of gz - d * rstd^2 * mean of gz * d), with d = x - mean
  C10_HOST_DEVICE void operator()(int64_t i, const std::array<double, 3>& sums) const {
    const double rstd = reciprocal_deviation(static_cast<double>(var[i]), eps);
    bias[i] = sums[0];
    weight[i] = sums[1] * rstd;
    slope[i] = sums[2];
    if (offset != nullptr) {
      const auto scale_here = static_cast<double>(scale[i]);
      offset[i] = static_cast<compute_t>(-scale_here * (sums[0] * share));
      factor[i] = static_cast<compute_t>(-scale_here * rstd * rstd * (sums[1] * share));
    }
  }
};

}  // namespace torch_ext
