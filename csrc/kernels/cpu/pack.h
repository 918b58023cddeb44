// A pack: neighbouring elements that fill one register as they are stored. For arithmetic they are
// widened to one vector of the compute type, or two for 16-bit elements; results are rounded once
// and stored as a pack. Knows no layout and no operation.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "kernels/cpu/vector.h"
#include "kernels/operation.h"

namespace torch_ext::cpu::CPU_CAPABILITY {

// The registers of a pack as it is stored: one, or two halves for float16 where instructions
// convert halves; joining them would cost as much as the conversion.
template <typename scalar_t>
inline constexpr int kStoredParts = 1;
#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
template <>
inline constexpr int kStoredParts<c10::Half> = 2;
#endif

template <typename scalar_t>
struct Pack {
  using compute_t = compute_type<scalar_t>;
  using V = Vector<compute_t>;
  static constexpr int64_t kSize = kVectorBytes / sizeof(scalar_t);
  static constexpr int kVectors = sizeof(compute_t) / sizeof(scalar_t);
  static constexpr int kParts = kStoredParts<scalar_t>;
  static constexpr size_t kPartBytes = kVectorBytes / kParts;
  using Part = Native<std::conditional_t<sizeof(scalar_t) == 2, int16_t, scalar_t>, kPartBytes>;
  using Widened = std::array<V, kVectors>;
  using Masks = std::array<Mask<compute_t>, kVectors>;

  // Which element of a pack is in lane i of its vectors, where lanes are counted across the
  // vectors. A bfloat16 is the upper half of a float, so a shift and a mask widen a register of
  // them to one vector of the even and one of the odd elements.
  static constexpr bool kEvenOdd = std::is_same_v<scalar_t, c10::BFloat16>;
  static constexpr int64_t element_of_lane(int64_t i) {
    return kEvenOdd ? i % V::kSize * 2 + i / V::kSize : i;
  }

  std::array<Part, kParts> stored;

  C10_ALWAYS_INLINE static Pack load(const scalar_t* from) {
    Pack pack;
    unrolled<kParts>(TORCH_EXT_UNROLLED(i) {
      std::memcpy(&pack.stored[i], from + i * kSize / kParts, kPartBytes);
    });
    return pack;
  }
  C10_ALWAYS_INLINE void store(scalar_t* to) const {
    unrolled<kParts>(
        TORCH_EXT_UNROLLED(i) { std::memcpy(to + i * kSize / kParts, &stored[i], kPartBytes); });
  }

  // A non-temporal store, which bypasses the caches and does not read the line first; `to` is
  // aligned to a register.
  C10_ALWAYS_INLINE void stream(scalar_t* to) const {
    unrolled<kParts>(TORCH_EXT_UNROLLED(i) {
      stream_bytes(std::bit_cast<Native<int64_t, kPartBytes>>(stored[i]), to + i * kSize / kParts);
    });
  }

  // Only the first `count` elements; the others are 0.
  static Pack load(const scalar_t* from, int64_t count) {
    Pack pack{};
    std::memcpy(pack.stored.data(), from, count * sizeof(scalar_t));
    return pack;
  }
  void store(scalar_t* to, int64_t count) const {
    std::memcpy(to, stored.data(), count * sizeof(scalar_t));
  }

  // The vectors' lanes that hold the first `count` elements of the pack, and the other lanes.
  C10_ALWAYS_INLINE static Masks first_lanes(int64_t count) {
    Masks masks;
    unrolled<kVectors>(TORCH_EXT_UNROLLED(v) { masks[v] = lanes_before(positions(v), count); });
    return masks;
  }
  C10_ALWAYS_INLINE static Masks other_lanes(int64_t count) {
    Masks masks;
    unrolled<kVectors>(TORCH_EXT_UNROLLED(v) { masks[v] = lanes_from(positions(v), count); });
    return masks;
  }

  // Vectors of neighbouring elements in their natural order, as the vectors of a pack; and back.
  C10_ALWAYS_INLINE static Widened from_natural(const Widened& natural) {
    if constexpr (kEvenOdd) {
      return shuffled(
          natural, [](int lane) { return 2 * lane % (2 * V::kSize) + 2 * lane / (2 * V::kSize); });
    }
    return natural;
  }
  C10_ALWAYS_INLINE static Widened to_natural(const Widened& vectors) {
    if constexpr (kEvenOdd) {
      return shuffled(vectors, [](int lane) { return lane / 2 + lane % 2 * V::kSize; });
    }
    return vectors;
  }

  C10_ALWAYS_INLINE Widened widened() const;
  C10_ALWAYS_INLINE static Pack rounded(const Widened& values);

 private:
  // Which element is in each lane of vector v.
  C10_ALWAYS_INLINE static auto positions(int v) {
    using Position = SignedOf<compute_t>;
    static constexpr auto kPositions = [] {
      std::array<std::array<Position, V::kSize>, kVectors> all{};
      for (int i = 0; i < kVectors * V::kSize; ++i) {
        all[i / V::kSize][i % V::kSize] = static_cast<Position>(element_of_lane(i));
      }
      return all;
    }();
    return std::bit_cast<Native<Position>>(kPositions[v]);
  }

  // Two vectors whose lane i comes from lane from(i), where lanes are counted across both.
  template <typename From>
  C10_ALWAYS_INLINE static Widened shuffled(const Widened& vectors, const From&) {
    using Lanes = std::make_integer_sequence<int, V::kSize>;
    return {vector_of<From, 0>(vectors, Lanes()), vector_of<From, V::kSize>(vectors, Lanes())};
  }

  template <typename From, int first, int... i>
  C10_ALWAYS_INLINE static V vector_of(
      const Widened& vectors, std::integer_sequence<int, i...> /*lanes*/) {
    return V(__builtin_shufflevector(vectors[0].native, vectors[1].native, From()(first + i)...));
  }
};

// float and double are stored as they are computed.
template <typename scalar_t>
C10_ALWAYS_INLINE auto Pack<scalar_t>::widened() const -> Widened {
  return {V(stored[0])};
}
template <typename scalar_t>
C10_ALWAYS_INLINE auto Pack<scalar_t>::rounded(const Widened& values) -> Pack {
  return {{values[0].native}};
}

template <>
C10_ALWAYS_INLINE auto Pack<c10::BFloat16>::widened() const -> Widened {
  const auto pairs = std::bit_cast<Native<uint32_t>>(stored[0]);
  return {
      V(std::bit_cast<Native<float>>(pairs << 16)),
      V(std::bit_cast<Native<float>>(pairs & 0xFFFF0000u))};
}

// To the nearest bfloat16, ties to even. A NaN stays a NaN because its lower half is zero:
// arithmetic creates such NaNs or propagates those of its operands, and the NaNs of elements and of
// the values of channels (channel_values.h) are of this kind.
template <>
C10_ALWAYS_INLINE auto Pack<c10::BFloat16>::rounded(const Widened& values) -> Pack {
  const auto rounded_up = [](const V& value) {
    const auto bits = std::bit_cast<Native<uint32_t>>(value.native);
    return bits + 0x7FFFu + (bits >> 16 & 1u);
  };
  const auto even = rounded_up(values[0]) >> 16;
#if defined(CPU_CAPABILITY_AVX2)
  const auto odd = rounded_up(values[1]);
  return {{std::bit_cast<Part>(
      _mm256_blend_epi16(std::bit_cast<__m256i>(even), std::bit_cast<__m256i>(odd), 0xAA))}};
#else
  const auto odd = rounded_up(values[1]) & 0xFFFF0000u;
  return {{std::bit_cast<Part>(even | odd)}};
#endif
}

template <>
C10_ALWAYS_INLINE auto Pack<c10::Half>::widened() const -> Widened {
#if defined(CPU_CAPABILITY_AVX512)
  return {
      V(_mm512_cvtph_ps(std::bit_cast<__m256i>(stored[0]))),
      V(_mm512_cvtph_ps(std::bit_cast<__m256i>(stored[1])))};
#elif defined(CPU_CAPABILITY_AVX2)
  return {
      V(_mm256_cvtph_ps(std::bit_cast<__m128i>(stored[0]))),
      V(_mm256_cvtph_ps(std::bit_cast<__m128i>(stored[1])))};
#elif defined(__aarch64__)
  const auto halves = std::bit_cast<float16x8_t>(stored[0]);
  return {
      V(std::bit_cast<Native<float>>(vcvt_f32_f16(vget_low_f16(halves)))),
      V(std::bit_cast<Native<float>>(vcvt_high_f32_f16(halves)))};
#else
  const auto elements = std::bit_cast<std::array<c10::Half, kSize>>(stored[0]);
  std::array<float, kSize> floats;
  std::copy(elements.begin(), elements.end(), floats.begin());
  return std::bit_cast<Widened>(floats);
#endif
}

template <>
C10_ALWAYS_INLINE auto Pack<c10::Half>::rounded(const Widened& values) -> Pack {
#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
  const auto half = [](const V& floats) {
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
#if defined(CPU_CAPABILITY_AVX512)
    return std::bit_cast<Part>(_mm512_cvtps_ph(floats.native, kNearest));
#else
    return std::bit_cast<Part>(_mm256_cvtps_ph(floats.native, kNearest));
#endif
  };
  return {{half(values[0]), half(values[1])}};
#elif defined(__aarch64__)
  const auto low = vcvt_f16_f32(std::bit_cast<float32x4_t>(values[0].native));
  const auto high = std::bit_cast<float32x4_t>(values[1].native);
  return {{std::bit_cast<Part>(vcvt_high_f16_f32(low, high))}};
#else
  const auto floats = std::bit_cast<std::array<float, kSize>>(values);
  std::array<c10::Half, kSize> elements;
  std::copy(floats.begin(), floats.end(), elements.begin());
  return {{std::bit_cast<Part>(elements)}};
#endif
}

}  // namespace torch_ext::cpu::CPU_CAPABILITY
