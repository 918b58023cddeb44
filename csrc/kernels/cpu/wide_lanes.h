// Wide sums (sums.h) in SIMD registers, one to a lane. Knows no layout and no operation.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <array>
#include <cstddef>

#include "kernels/cpu/sums.h"

namespace torch_ext::cpu::CPU_CAPABILITY {

using at::vec::Vectorized;

// A wide sum in each lane.
template <typename acc_t>
class WideLanes;

template <>
class WideLanes<float> {
 public:
  C10_ALWAYS_INLINE void add(const Vectorized<float>& terms) {
    const auto wide = at::vec::convert<double, 2, float, 1>(at::vec::VectorizedN<float, 1>(terms));
    low_ = low_ + wide[0];
    high_ = high_ + wide[1];
  }

  // Lane by lane, to Vectorized<float>::size() sums.
  void store(WideSum<float>* to) const {
    low_.store(to);
    high_.store(to + Vectorized<double>::size());
  }

 private:
  Vectorized<double> low_{0.0};
  Vectorized<double> high_{0.0};
};

template <>
class WideLanes<double> {
 public:
  C10_ALWAYS_INLINE void add(const Vectorized<double>& terms) {
    const TwoSum<Vectorized<double>> next(value_, terms);
    value_ = next.sum;
    correction_ = correction_ + next.error;
  }

  void store(WideSum<double>* to) const {
    std::array<double, Vectorized<double>::size()> values;
    std::array<double, Vectorized<double>::size()> corrections;
    value_.store(values.data());
    correction_.store(corrections.data());
    for (size_t i = 0; i < values.size(); ++i) {
      to[i] = {values[i], corrections[i]};
    }
  }

 private:
  Vectorized<double> value_{0.0};
  Vectorized<double> correction_{0.0};
};

// The sum over all lanes.
template <typename acc_t>
WideSum<acc_t> total(const WideLanes<acc_t>& lanes) {
  std::array<WideSum<acc_t>, Vectorized<acc_t>::size()> each;
  lanes.store(each.data());
  WideSum<acc_t> sum;
  for (const WideSum<acc_t>& lane : each) {
    sum.add(lane);
  }
  return sum;
}

}  // namespace torch_ext::cpu::CPU_CAPABILITY
