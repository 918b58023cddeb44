// The AVX-512 instructions that the CPU engine names, lane by lane as Intel's guide defines them,
// so that its AVX-512 path runs where the processor has none (avx512_emulation.sh). Included before
// everything else; for GCC.
#pragma once

// PyTorch's conversions of float16 come first: they would name further instructions.
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#define CPU_CAPABILITY AVX512
#define CPU_CAPABILITY_AVX512

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace avx512_emulation {

template <typename V, typename T>
constexpr int kLanes = sizeof(V) / sizeof(T);

#define TORCH_EXT_EMULATE(SUFFIX, V, T, M)                                              \
  inline __attribute__((always_inline)) M cmp_##SUFFIX(V a, V b, int predicate) {       \
    M mask = 0;                                                                         \
    for (int i = 0; i < kLanes<V, T>; ++i) {                                            \
      if (predicate != _CMP_GT_OQ) {                                                    \
        __builtin_trap();                                                               \
      }                                                                                 \
      mask |= static_cast<M>(a[i] > b[i] ? 1u << i : 0u);                               \
    }                                                                                   \
    return mask;                                                                        \
  }                                                                                     \
  inline __attribute__((always_inline)) V blend_##SUFFIX(M mask, V a, V b) {            \
    for (int i = 0; i < kLanes<V, T>; ++i) {                                            \
      a[i] = mask >> i & 1 ? b[i] : a[i];                                               \
    }                                                                                   \
    return a;                                                                           \
  }                                                                                     \
  inline __attribute__((always_inline)) V fmadd_##SUFFIX(V a, V b, V c) {               \
    for (int i = 0; i < kLanes<V, T>; ++i) {                                            \
      c[i] = std::fma(a[i], b[i], c[i]);                                                \
    }                                                                                   \
    return c;                                                                           \
  }                                                                                     \
  inline __attribute__((always_inline)) V add_##SUFFIX(V source, M mask, V a, V b) {    \
    for (int i = 0; i < kLanes<V, T>; ++i) {                                            \
      source[i] = mask >> i & 1 ? a[i] + b[i] : source[i];                              \
    }                                                                                   \
    return source;                                                                      \
  }                                                                                     \
  inline __attribute__((always_inline)) V mask3_fmadd_##SUFFIX(V a, V b, V c, M mask) { \
    for (int i = 0; i < kLanes<V, T>; ++i) {                                            \
      c[i] = mask >> i & 1 ? std::fma(a[i], b[i], c[i]) : c[i];                         \
    }                                                                                   \
    return c;                                                                           \
  }
TORCH_EXT_EMULATE(ps, __m512, float, __mmask16)
TORCH_EXT_EMULATE(pd, __m512d, double, __mmask8)
#undef TORCH_EXT_EMULATE

template <typename To, typename From>
inline __attribute__((always_inline)) To first_bytes(const From& from) {
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <typename Mask, typename Lane>
inline __attribute__((always_inline)) Mask sign_bits(__m512i lanes) {
  Mask mask = 0;
  for (int i = 0; i < kLanes<__m512i, Lane>; ++i) {
    Lane lane;
    std::memcpy(&lane, reinterpret_cast<const char*>(&lanes) + i * sizeof(Lane), sizeof(Lane));
    mask |= static_cast<Mask>(lane < 0 ? 1u << i : 0u);
  }
  return mask;
}

inline __attribute__((always_inline)) __m512d widened(__m256 floats) {
  __m512d doubles;
  for (int i = 0; i < 8; ++i) {
    doubles[i] = static_cast<double>(floats[i]);
  }
  return doubles;
}

inline __attribute__((always_inline)) __m256d half(__m512d doubles, int index) {
  __m256d result;
  std::memcpy(&result, reinterpret_cast<const char*>(&doubles) + 32 * index, 32);
  return result;
}

inline __attribute__((always_inline)) __m512 from_halves(__m256i halves) {
  const __m256 low = _mm256_cvtph_ps(_mm256_extractf128_si256(halves, 0));
  const __m256 high = _mm256_cvtph_ps(_mm256_extractf128_si256(halves, 1));
  __m512 floats;
  std::memcpy(&floats, &low, 32);
  std::memcpy(reinterpret_cast<char*>(&floats) + 32, &high, 32);
  return floats;
}

inline __attribute__((always_inline)) __m256i to_halves(__m512 floats) {
  __m256 low, high;
  std::memcpy(&low, &floats, 32);
  std::memcpy(&high, reinterpret_cast<const char*>(&floats) + 32, 32);
  return _mm256_set_m128i(
      _mm256_cvtps_ph(high, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
      _mm256_cvtps_ph(low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// Faults as the instruction does where the address is not aligned.
inline void stream(__m512i* to, __m512i value) {
  for (int i = 0; i < 2; ++i) {
    __m256i part;
    std::memcpy(&part, reinterpret_cast<const char*>(&value) + 32 * i, 32);
    if (reinterpret_cast<std::uintptr_t>(to) % 64 != 0) {
      __builtin_trap();
    }
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to) + i, part);
  }
}

}  // namespace avx512_emulation

#undef _mm512_cmp_ps_mask
#undef _mm512_cmp_pd_mask
#undef _mm512_extractf64x4_pd
#undef _mm512_cvtps_ph
#define _mm512_cmp_ps_mask avx512_emulation::cmp_ps
#define _mm512_cmp_pd_mask avx512_emulation::cmp_pd
#define _mm512_mask_blend_ps avx512_emulation::blend_ps
#define _mm512_mask_blend_pd avx512_emulation::blend_pd
#define _mm512_fmadd_ps avx512_emulation::fmadd_ps
#define _mm512_fmadd_pd avx512_emulation::fmadd_pd
#define _mm512_mask_add_ps avx512_emulation::add_ps
#define _mm512_mask_add_pd avx512_emulation::add_pd
#define _mm512_mask3_fmadd_ps avx512_emulation::mask3_fmadd_ps
#define _mm512_mask3_fmadd_pd avx512_emulation::mask3_fmadd_pd
#define _mm512_movepi64_mask avx512_emulation::sign_bits<__mmask8, int64_t>
#define _mm512_movepi32_mask avx512_emulation::sign_bits<__mmask16, int32_t>
#define _mm512_castps_pd avx512_emulation::first_bytes<__m512d>
#define _mm512_castps512_ps256 avx512_emulation::first_bytes<__m256>
#define _mm512_extractf64x4_pd avx512_emulation::half
#define _mm512_cvtps_pd avx512_emulation::widened
#define _mm512_cvtph_ps avx512_emulation::from_halves
#define _mm512_cvtps_ph(floats, rounding) avx512_emulation::to_halves(floats)
#define _mm512_stream_si512 avx512_emulation::stream
