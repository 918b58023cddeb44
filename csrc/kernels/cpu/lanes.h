// SIMD registers as the walkers see them: `Lanes` loads a step of stored elements (16 bit or wider)
// as vectors of the type that arithmetic runs in, and stores them rounded. Instruction set:
// CPU_CAPABILITY, for which this header is compiled.
#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <array>
#include <cstdint>
#include <type_traits>

#include "kernels/cpu/sums.h"
#include "kernels/prelu_math.h"

namespace torch_ext::math {

template <typename T>
struct Select<at::vec::Vectorized<T>> {
  using Vec = at::vec::Vectorized<T>;

  C10_ALWAYS_INLINE static Vec by_sign(const Vec& x, const Vec& if_positive, const Vec& otherwise) {
    return Vec::blendv(otherwise, if_positive, x > Vec(T(0)));
  }
};

}  // namespace torch_ext::math

// As in at::vec, each instruction set has its own names, so that no linker can mix them up.
namespace torch_ext::cpu::CPU_CAPABILITY {

using at::vec::Vectorized;

template <typename scalar_t>
using acc_type = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

// One step: kSize neighbouring elements of scalar_t in kVectors registers of acc_t.
template <typename scalar_t>
struct Lanes {
  using acc_t = acc_type<scalar_t>;
  using Vec = Vectorized<acc_t>;
  static constexpr int kVectors = sizeof(acc_t) / sizeof(scalar_t);
  static constexpr int64_t kSize = Vec::size() * kVectors;

  std::array<Vec, kVectors> vec;

  C10_ALWAYS_INLINE static Lanes load(const scalar_t* from) {
    return widen(Vectorized<scalar_t>::loadu(from));
  }
  C10_ALWAYS_INLINE static Lanes load(const scalar_t* from, int64_t count) {
    return widen(Vectorized<scalar_t>::loadu(from, count));
  }
  C10_ALWAYS_INLINE void store(scalar_t* to) const { narrow().store(to); }
  C10_ALWAYS_INLINE void store(scalar_t* to, int64_t count) const {
    narrow().store(to, static_cast<int>(count));
  }

 private:
  C10_ALWAYS_INLINE static Lanes widen(const Vectorized<scalar_t>& stored) {
    if constexpr (kVectors == 1) {
      return {{stored}};
    } else {
      const auto [low, high] = at::vec::convert_to_float<scalar_t>(stored);
      return {{low, high}};
    }
  }
  C10_ALWAYS_INLINE Vectorized<scalar_t> narrow() const {
    if constexpr (kVectors == 1) {
      return vec[0];
    } else {
      return at::vec::convert_from_float<scalar_t>(vec[0], vec[1]);
    }
  }
};

// The last `count` lanes of kVectors registers; zeroes the others. For steps that reach back over
// elements which an earlier step has already summed.
template <typename acc_t, int kVectors>
class LastLanes {
 public:
  using Vec = Vectorized<acc_t>;

  explicit LastLanes(int64_t count) : from_(kBits.data() + count) {}

  C10_ALWAYS_INLINE Vec keep(const Vec& values, int v) const {
    const Vec mask = Vec::loadu(from_ + v * Vec::size());
    return Vec::blendv(Vec(acc_t(0)), values, mask);
  }

 private:
  using Bits = std::conditional_t<std::is_same_v<acc_t, double>, int64_t, int32_t>;
  static constexpr int64_t kLanes = Vec::size() * kVectors;

  // kLanes times "no", then kLanes times "yes": a window into it is any mask of this kind.
  static constexpr std::array<Bits, 2 * kLanes> kBits = [] {
    std::array<Bits, 2 * kLanes> bits{};
    for (int64_t i = kLanes; i < 2 * kLanes; ++i) {
      bits[i] = -1;
    }
    return bits;
  }();

  const Bits* from_;
};

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
