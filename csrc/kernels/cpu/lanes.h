// SIMD registers as the walkers see them: a step of neighbouring elements, as `Lanes` in the type
// that is stored and as `Wide` in the type that arithmetic runs in. Instruction set:
// CPU_CAPABILITY, for which this header is compiled.
#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "kernels/prelu_math.h"

// As in at::vec, each instruction set has its own names, so that no linker can mix them up.
namespace torch_ext::cpu::CPU_CAPABILITY {

using at::vec::Vectorized;

// One vector register of integers (a GCC and clang extension).
template <typename integer_t>
struct BitsOf {
  typedef integer_t type __attribute__((vector_size(sizeof(Vectorized<float>))));
};
template <typename integer_t>
using Bits = typename BitsOf<integer_t>::type;

// One step in the type that arithmetic runs in: kSize neighbours in kVectors registers.
//
// A bfloat16 is the upper half of a float. A shift and a mask therefore widen a register of them to
// two of floats, which hold the even and the odd elements: the "wide order". The other types' wide
// order is the natural one.
template <typename scalar_t>
struct Wide {
  using acc_t = acc_type<scalar_t>;
  using Vec = Vectorized<acc_t>;
  static constexpr int kVectors = sizeof(acc_t) / sizeof(scalar_t);
  static constexpr int64_t kSize = Vec::size() * kVectors;
  static constexpr bool kEvenOdd = std::is_same_v<scalar_t, c10::BFloat16>;

  std::array<Vec, kVectors> vec;

  Wide() = default;
  C10_ALWAYS_INLINE explicit Wide(acc_t value) { vec.fill(Vec(value)); }

  C10_ALWAYS_INLINE static Wide load(const acc_t* from) {
    Wide wide;
    for (int v = 0; v < kVectors; ++v) {
      wide.vec[v] = Vec::loadu(from + v * Vec::size());
    }
    return wide;
  }
  C10_ALWAYS_INLINE void store(acc_t* to) const {
    for (int v = 0; v < kVectors; ++v) {
      vec[v].store(to + v * Vec::size());
    }
  }

  C10_ALWAYS_INLINE friend Wide operator+(const Wide& a, const Wide& b) {
    Wide sum;
    for (int v = 0; v < kVectors; ++v) {
      sum.vec[v] = a.vec[v] + b.vec[v];
    }
    return sum;
  }
  C10_ALWAYS_INLINE friend Wide operator*(const Wide& a, const Wide& b) {
    Wide product;
    for (int v = 0; v < kVectors; ++v) {
      product.vec[v] = a.vec[v] * b.vec[v];
    }
    return product;
  }

  // From natural order, and to it.
  C10_ALWAYS_INLINE Wide ordered() const {
    return shuffled<true>(std::make_index_sequence<Vec::size()>());
  }
  C10_ALWAYS_INLINE Wide natural() const {
    return shuffled<false>(std::make_index_sequence<Vec::size()>());
  }

  // Zeroes all but the last `count` elements: for steps that reach back over elements which an
  // earlier step has already summed.
  C10_ALWAYS_INLINE Wide last(int64_t count) const {
    Wide kept;
    for (int v = 0; v < kVectors; ++v) {
      const int64_t behind = (kVectors - 1 - v) * Vec::size();
      const int64_t in_vector =
          kEvenOdd ? (count + v) / 2 : std::clamp<int64_t>(count - behind, 0, Vec::size());
      const Vec mask = Vec::loadu(kNoThenYes.data() + in_vector);
      kept.vec[v] = Vec::blendv(Vec(acc_t(0)), vec[v], mask);
    }
    return kept;
  }

  // All elements added, lane by lane, into one register.
  C10_ALWAYS_INLINE Vec folded() const {
    if constexpr (kVectors == 2) {
      return vec[0] + vec[1];
    } else {
      return vec[0];
    }
  }

 private:
  using Mask = std::conditional_t<std::is_same_v<acc_t, double>, int64_t, int32_t>;

  // A window into it is a mask of the last lanes.
  static constexpr std::array<Mask, 2 * Vec::size()> kNoThenYes = [] {
    std::array<Mask, 2 * Vec::size()> bits{};
    std::fill(bits.begin() + Vec::size(), bits.end(), Mask(-1));
    return bits;
  }();

  template <bool to_wide_order, size_t... kLane>
  C10_ALWAYS_INLINE Wide shuffled(std::index_sequence<kLane...>) const {
    if constexpr (!kEvenOdd) {
      return *this;
    } else {
      constexpr size_t kHalf = Vec::size() / 2;
      const auto a = std::bit_cast<Bits<float>>(vec[0]);
      const auto b = std::bit_cast<Bits<float>>(vec[1]);
      Wide result;
      if constexpr (to_wide_order) {
        result.vec[0] = std::bit_cast<Vec>(__builtin_shufflevector(a, b, (2 * kLane)...));
        result.vec[1] = std::bit_cast<Vec>(__builtin_shufflevector(a, b, (2 * kLane + 1)...));
      } else {
        constexpr auto kFrom = [](size_t i) { return i / 2 + i % 2 * Vec::size(); };
        result.vec[0] = std::bit_cast<Vec>(__builtin_shufflevector(a, b, kFrom(kLane)...));
        result.vec[1] =
            std::bit_cast<Vec>(__builtin_shufflevector(a, b, (kHalf + kFrom(kLane))...));
      }
      return result;
    }
  }
};

// One step as it is stored. `slope * lanes` is rounded to the stored type, once.
template <typename scalar_t>
struct Lanes {
  using acc_t = acc_type<scalar_t>;
  using WideStep = Wide<scalar_t>;
  static constexpr int64_t kSize = WideStep::kSize;
  static constexpr bool kIs16Bit = sizeof(scalar_t) == 2;
  using Register = std::conditional_t<kIs16Bit, Bits<int16_t>, typename WideStep::Vec>;

  Register stored;

  C10_ALWAYS_INLINE static Lanes load(const scalar_t* from) {
    if constexpr (kIs16Bit) {
      Lanes lanes;
      std::memcpy(&lanes.stored, from, sizeof(Register));
      return lanes;
    } else {
      return {Register::loadu(from)};
    }
  }
  C10_ALWAYS_INLINE void store(scalar_t* to) const { std::memcpy(to, &stored, sizeof(Register)); }

  // Past the caches, and without reading the line first; `to` is aligned to a register.
  C10_ALWAYS_INLINE void stream(scalar_t* to) const {
#if defined(CPU_CAPABILITY_AVX512)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), std::bit_cast<__m512i>(stored));
#elif defined(CPU_CAPABILITY_AVX2)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), std::bit_cast<__m256i>(stored));
#else
    store(to);
#endif
  }

  // Only the first `count` elements; others load as 0.
  static Lanes load(const scalar_t* from, int64_t count) {
    std::array<scalar_t, kSize> elements{};
    std::memcpy(elements.data(), from, count * sizeof(scalar_t));
    return load(elements.data());
  }
  void store(scalar_t* to, int64_t count) const {
    std::array<scalar_t, kSize> elements;
    store(elements.data());
    std::memcpy(to, elements.data(), count * sizeof(scalar_t));
  }

  // A slope as the arithmetic below wants it: a NaN whose lower half is zero, see rounded_up().
  static acc_t slope(acc_t value) {
    return WideStep::kEvenOdd && std::isnan(value) ? std::numeric_limits<acc_t>::quiet_NaN()
                                                   : value;
  }

  C10_ALWAYS_INLINE friend Lanes operator*(const WideStep& slope, const Lanes& lanes) {
    return rounded(slope * lanes.widened());
  }
  C10_ALWAYS_INLINE WideStep widened() const {
    WideStep wide;
    if constexpr (!kIs16Bit) {
      wide.vec[0] = stored;
    } else if constexpr (WideStep::kEvenOdd) {
      const auto pairs = std::bit_cast<Bits<uint32_t>>(stored);
      wide.vec[0] = std::bit_cast<Vectorized<float>>(pairs << 16);
      wide.vec[1] = std::bit_cast<Vectorized<float>>(pairs & 0xFFFF0000u);
    } else {
      const auto [low, high] =
          at::vec::convert_to_float<scalar_t>(std::bit_cast<Vectorized<scalar_t>>(stored));
      wide.vec = {low, high};
    }
    return wide;
  }

  // x > 0, in all bits of each element; false for NaN.
  C10_ALWAYS_INLINE auto positive() const
    requires(kIs16Bit)
  {
    // As integers, the positive numbers are 1 ... infinity. Shifted to the lowest integers, one
    // comparison finds them.
    constexpr int16_t kInfinity = WideStep::kEvenOdd ? 0x7F80 : 0x7C00;
    const auto shifted = std::bit_cast<Bits<uint16_t>>(stored) + uint16_t(0x7FFF);
    return std::bit_cast<Bits<int16_t>>(shifted) < int16_t(INT16_MIN + kInfinity);
  }

 private:
  C10_ALWAYS_INLINE static Lanes rounded(const WideStep& wide) {
    if constexpr (!kIs16Bit) {
      return {wide.vec[0]};
    } else if constexpr (WideStep::kEvenOdd) {
      const Bits<uint32_t> even = rounded_up(wide.vec[0]) >> 16;
      const Bits<uint32_t> odd = rounded_up(wide.vec[1]) & 0xFFFF0000u;
      return {std::bit_cast<Register>(even | odd)};
    } else {
      return {
          std::bit_cast<Register>(at::vec::convert_from_float<scalar_t>(wide.vec[0], wide.vec[1]))};
    }
  }

  // A float whose upper half is the nearest bfloat16, ties to even. A NaN stays one because its
  // lower half is zero: it is the processor's own or that of an operand, and both factors of a
  // product have such NaNs (slope() sees to it for float32 slopes).
  C10_ALWAYS_INLINE static Bits<uint32_t> rounded_up(const Vectorized<float>& value) {
    const auto bits = std::bit_cast<Bits<uint32_t>>(value);
    return bits + 0x7FFFu + (bits >> 16 & 1u);
  }
};

}  // namespace torch_ext::cpu::CPU_CAPABILITY

namespace torch_ext::math {

template <typename scalar_t>
struct Select<cpu::CPU_CAPABILITY::Lanes<scalar_t>> {
  using Lanes = cpu::CPU_CAPABILITY::Lanes<scalar_t>;
  using Wide = typename Lanes::WideStep;
  using Vec = typename Wide::Vec;

  C10_ALWAYS_INLINE static Lanes by_sign(
      const Lanes& x, const Lanes& if_positive, const Lanes& otherwise) {
    if constexpr (Lanes::kIs16Bit) {
      return {x.positive() ? if_positive.stored : otherwise.stored};
    } else {
      return {by_sign(x.stored, if_positive.stored, otherwise.stored)};
    }
  }
  C10_ALWAYS_INLINE static Wide product_unless_positive(const Lanes& x, const Lanes& other) {
    if constexpr (Wide::kEvenOdd) {
      // Zeroing both factors takes one comparison for a whole register; 0 * 0 is 0 as surely.
      const auto positive = x.positive();
      const Lanes x_or_zero{~positive & x.stored};
      const Lanes other_or_zero{~positive & other.stored};
      return x_or_zero.widened() * other_or_zero.widened();
    } else {
      const Wide wide_x = x.widened();
      Wide product = wide_x * other.widened();
      for (int v = 0; v < Wide::kVectors; ++v) {
        product.vec[v] = by_sign(wide_x.vec[v], Vec(0), product.vec[v]);
      }
      return product;
    }
  }

 private:
  C10_ALWAYS_INLINE static Vec by_sign(const Vec& x, const Vec& if_positive, const Vec& otherwise) {
    return Vec::blendv(otherwise, if_positive, x > Vec(typename Wide::acc_t(0)));
  }
};

}  // namespace torch_ext::math
