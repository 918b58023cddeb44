// A vector register of the compute type, as operations see it (kernels/operation.h). Written with
// the vector extensions of GCC and clang; where an instruction set has a better way, it is named
// here and nowhere else. CPU_CAPABILITY is the instruction set that this header is compiled for.
#pragma once

#include <c10/macros/Macros.h>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// Each instruction set has its own namespace, so that no linker can confuse them.
namespace torch_ext::cpu::CPU_CAPABILITY {

#if defined(CPU_CAPABILITY_AVX512)
inline constexpr size_t kVectorBytes = 64;
#elif defined(CPU_CAPABILITY_AVX2)
inline constexpr size_t kVectorBytes = 32;
#else
inline constexpr size_t kVectorBytes = 16;
#endif

// body(0) ... body(count - 1), where the index is a constant. For arrays of registers: compilers
// unroll an ordinary loop too late to keep the array out of memory.
template <int count, typename Body>
C10_ALWAYS_INLINE void unrolled(const Body& body) {
  [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
    (body(std::integral_constant<int, i>()), ...);
  }(std::make_integer_sequence<int, count>());
}
// NOLINTNEXTLINE(bugprone-macro-parentheses): the name of a parameter
#define TORCH_EXT_UNROLLED(i) [&](auto i) __attribute__((always_inline))

// A register of any element type, and a part of one.
template <typename T, size_t bytes = kVectorBytes>
struct NativeOf {
  typedef T type __attribute__((vector_size(bytes)));
};
template <typename T, size_t bytes = kVectorBytes>
using Native = typename NativeOf<T, bytes>::type;

template <typename T>
using SignedOf = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

// A condition for each lane of a Vector<T>.
template <typename T>
struct Mask {
#if defined(CPU_CAPABILITY_AVX512)
  using Bits = std::conditional_t<sizeof(T) == 8, __mmask8, __mmask16>;
#else
  using Bits = Native<SignedOf<T> >;  // all bits of a lane
#endif

  Bits bits;

#if defined(CPU_CAPABILITY_AVX512)
  C10_ALWAYS_INLINE friend Mask operator!(Mask a) { return {static_cast<Bits>(~a.bits)}; }
#endif
  C10_ALWAYS_INLINE friend Mask operator&(Mask a, Mask b) {
    return {static_cast<Bits>(a.bits & b.bits)};
  }
};

template <typename T>
struct Vector {
  static constexpr int kSize = kVectorBytes / sizeof(T);

  Native<T> native;

  Vector() = default;
  C10_ALWAYS_INLINE explicit Vector(T value) : native(value - Native<T>{}) {}  // keeps -0
  C10_ALWAYS_INLINE explicit Vector(Native<T> value) : native(value) {}

  C10_ALWAYS_INLINE static Vector load(const T* from) {
    Vector vector;
    std::memcpy(&vector.native, from, kVectorBytes);
    return vector;
  }
  C10_ALWAYS_INLINE void store(T* to) const { std::memcpy(to, &native, kVectorBytes); }

  C10_ALWAYS_INLINE friend Vector operator+(Vector a, Vector b) {
    return Vector(a.native + b.native);
  }
  C10_ALWAYS_INLINE friend Vector operator-(Vector a, Vector b) {
    return Vector(a.native - b.native);
  }
  C10_ALWAYS_INLINE friend Vector operator*(Vector a, Vector b) {
    return Vector(a.native * b.native);
  }
};

// --- what instruction sets do differently
// -----------------------------------------------------------

#if defined(CPU_CAPABILITY_AVX512)

C10_ALWAYS_INLINE Mask<float> operator>(Vector<float> a, Vector<float> b) {
  return {_mm512_cmp_ps_mask(a.native, b.native, _CMP_GT_OQ)};
}
C10_ALWAYS_INLINE Mask<double> operator>(Vector<double> a, Vector<double> b) {
  return {_mm512_cmp_pd_mask(a.native, b.native, _CMP_GT_OQ)};
}

C10_ALWAYS_INLINE Vector<float> select(
    Mask<float> where, Vector<float> if_true, Vector<float> if_false) {
  return Vector<float>(_mm512_mask_blend_ps(where.bits, if_false.native, if_true.native));
}
C10_ALWAYS_INLINE Vector<double> select(
    Mask<double> where, Vector<double> if_true, Vector<double> if_false) {
  return Vector<double>(_mm512_mask_blend_pd(where.bits, if_false.native, if_true.native));
}

C10_ALWAYS_INLINE Vector<float> multiply_add(Vector<float> a, Vector<float> b, Vector<float> c) {
  return Vector<float>(_mm512_fmadd_ps(a.native, b.native, c.native));
}
C10_ALWAYS_INLINE Vector<double> multiply_add(
    Vector<double> a, Vector<double> b, Vector<double> c) {
  return Vector<double>(_mm512_fmadd_pd(a.native, b.native, c.native));
}

// a + b where the mask is set, else a.
C10_ALWAYS_INLINE Vector<float> add_where(Mask<float> where, Vector<float> a, Vector<float> b) {
  return Vector<float>(_mm512_mask_add_ps(a.native, where.bits, a.native, b.native));
}
C10_ALWAYS_INLINE Vector<double> add_where(Mask<double> where, Vector<double> a, Vector<double> b) {
  return Vector<double>(_mm512_mask_add_pd(a.native, where.bits, a.native, b.native));
}

// a * b + c where the mask is set, else c.
C10_ALWAYS_INLINE Vector<float> multiply_add_where(
    Mask<float> where, Vector<float> a, Vector<float> b, Vector<float> c) {
  return Vector<float>(_mm512_mask3_fmadd_ps(a.native, b.native, c.native, where.bits));
}
C10_ALWAYS_INLINE Vector<double> multiply_add_where(
    Mask<double> where, Vector<double> a, Vector<double> b, Vector<double> c) {
  return Vector<double>(_mm512_mask3_fmadd_pd(a.native, b.native, c.native, where.bits));
}

#else

// The opposite of a mask. Its bits are inverted when it is combined with another mask, by the same
// instruction.
template <typename T>
struct InvertedMask {
  typename Mask<T>::Bits bits;

  C10_ALWAYS_INLINE friend Mask<T> operator&(InvertedMask a, Mask<T> b) {
    return {~a.bits & b.bits};
  }
};

template <typename T>
C10_ALWAYS_INLINE InvertedMask<T> operator!(Mask<T> a) {
  return {a.bits};
}

template <typename T>
C10_ALWAYS_INLINE Mask<T> operator>(Vector<T> a, Vector<T> b) {
  return {a.native > b.native};
}

template <typename T>
C10_ALWAYS_INLINE Vector<T> select(Mask<T> where, Vector<T> if_true, Vector<T> if_false) {
  return Vector<T>(where.bits ? if_true.native : if_false.native);
}

#if defined(CPU_CAPABILITY_AVX2)

C10_ALWAYS_INLINE Vector<float> multiply_add(Vector<float> a, Vector<float> b, Vector<float> c) {
  return Vector<float>(_mm256_fmadd_ps(a.native, b.native, c.native));
}
C10_ALWAYS_INLINE Vector<double> multiply_add(
    Vector<double> a, Vector<double> b, Vector<double> c) {
  return Vector<double>(_mm256_fmadd_pd(a.native, b.native, c.native));
}

#elif defined(__aarch64__)

C10_ALWAYS_INLINE Vector<float> multiply_add(Vector<float> a, Vector<float> b, Vector<float> c) {
  return Vector<float>(std::bit_cast<Native<float> >(vfmaq_f32(
      std::bit_cast<float32x4_t>(c.native), std::bit_cast<float32x4_t>(a.native),
      std::bit_cast<float32x4_t>(b.native))));
}
C10_ALWAYS_INLINE Vector<double> multiply_add(
    Vector<double> a, Vector<double> b, Vector<double> c) {
  return Vector<double>(std::bit_cast<Native<double> >(vfmaq_f64(
      std::bit_cast<float64x2_t>(c.native), std::bit_cast<float64x2_t>(a.native),
      std::bit_cast<float64x2_t>(b.native))));
}

#else

// Not fused here: it would be a call of the C library for every lane.
template <typename T>
C10_ALWAYS_INLINE Vector<T> multiply_add(Vector<T> a, Vector<T> b, Vector<T> c) {
  return a * b + c;
}

#endif

// The lanes where the mask is set, zero elsewhere. (By names of instructions: GCC turns the
// operators into a blend with zero, which fewer execution units can do.)
#if defined(CPU_CAPABILITY_AVX2)

C10_ALWAYS_INLINE Vector<float> keep_where(Mask<float> where, Vector<float> a) {
  return Vector<float>(_mm256_and_ps(std::bit_cast<__m256>(where.bits), a.native));
}
C10_ALWAYS_INLINE Vector<float> keep_where(InvertedMask<float> where, Vector<float> a) {
  return Vector<float>(_mm256_andnot_ps(std::bit_cast<__m256>(where.bits), a.native));
}
C10_ALWAYS_INLINE Vector<double> keep_where(Mask<double> where, Vector<double> a) {
  return Vector<double>(_mm256_and_pd(std::bit_cast<__m256d>(where.bits), a.native));
}
C10_ALWAYS_INLINE Vector<double> keep_where(InvertedMask<double> where, Vector<double> a) {
  return Vector<double>(_mm256_andnot_pd(std::bit_cast<__m256d>(where.bits), a.native));
}

#else

template <typename T>
C10_ALWAYS_INLINE Vector<T> keep_where(Mask<T> where, Vector<T> a) {
  using Bits = typename Mask<T>::Bits;
  return Vector<T>(std::bit_cast<Native<T> >(where.bits & std::bit_cast<Bits>(a.native)));
}
template <typename T>
C10_ALWAYS_INLINE Vector<T> keep_where(InvertedMask<T> where, Vector<T> a) {
  return keep_where(Mask<T>{~where.bits}, a);
}

#endif

// a + b where the mask is set, else a.
template <typename Where, typename T>
C10_ALWAYS_INLINE Vector<T> add_where(Where where, Vector<T> a, Vector<T> b) {
  return a + keep_where(where, b);
}

// a * b + c where the mask is set, else c. Zeroing both factors is cheaper than a second select,
// and 0 * 0 adds nothing as well.
template <typename Where, typename T>
C10_ALWAYS_INLINE Vector<T> multiply_add_where(Where where, Vector<T> a, Vector<T> b, Vector<T> c) {
  return multiply_add(keep_where(where, a), keep_where(where, b), c);
}

#endif

// A non-temporal store, which bypasses the caches and does not read the line first; `to` is aligned
// to the value's size. An ordinary store where there is no such instruction.
#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
C10_ALWAYS_INLINE void stream_bytes(const Native<int64_t, 16>& value, void* to) {
  _mm_stream_si128(static_cast<__m128i*>(to), std::bit_cast<__m128i>(value));
}
C10_ALWAYS_INLINE void stream_bytes(const Native<int64_t, 32>& value, void* to) {
  _mm256_stream_si256(static_cast<__m256i*>(to), std::bit_cast<__m256i>(value));
}
#if defined(CPU_CAPABILITY_AVX512)
C10_ALWAYS_INLINE void stream_bytes(const Native<int64_t, 64>& value, void* to) {
  _mm512_stream_si512(static_cast<__m512i*>(to), std::bit_cast<__m512i>(value));
}
#endif
#else
C10_ALWAYS_INLINE void stream_bytes(const Native<int64_t>& value, void* to) {
  std::memcpy(to, &value, sizeof(value));
}
#endif

// The lanes at positions before `end`, and those from `begin` on, where lane i is at `positions`[i]
// (any numbers in any order).
#if defined(CPU_CAPABILITY_AVX512)
C10_ALWAYS_INLINE Mask<float> lanes_before(const Native<int32_t>& positions, int64_t end) {
  const __m512i ends = _mm512_set1_epi32(static_cast<int32_t>(end));
  return {_mm512_cmplt_epi32_mask(std::bit_cast<__m512i>(positions), ends)};
}
C10_ALWAYS_INLINE Mask<double> lanes_before(const Native<int64_t>& positions, int64_t end) {
  return {_mm512_cmplt_epi64_mask(std::bit_cast<__m512i>(positions), _mm512_set1_epi64(end))};
}
C10_ALWAYS_INLINE Mask<float> lanes_from(const Native<int32_t>& positions, int64_t begin) {
  return !lanes_before(positions, begin);
}
C10_ALWAYS_INLINE Mask<double> lanes_from(const Native<int64_t>& positions, int64_t begin) {
  return !lanes_before(positions, begin);
}
#else
C10_ALWAYS_INLINE Mask<float> lanes_before(const Native<int32_t>& positions, int64_t end) {
  return {positions < static_cast<int32_t>(end)};
}
C10_ALWAYS_INLINE Mask<double> lanes_before(const Native<int64_t>& positions, int64_t end) {
  return {positions < end};
}
C10_ALWAYS_INLINE Mask<float> lanes_from(const Native<int32_t>& positions, int64_t begin) {
  return {positions >= static_cast<int32_t>(begin)};
}
C10_ALWAYS_INLINE Mask<double> lanes_from(const Native<int64_t>& positions, int64_t begin) {
  return {positions >= begin};
}
#endif

// Floats in double precision: the lower and the upper half of the lanes. (GCC converts generic
// vectors in pieces of 128 bits, for aarch64 lane by lane.)
C10_ALWAYS_INLINE std::array<Vector<double>, 2> widened(const Vector<float>& floats) {
#if defined(CPU_CAPABILITY_AVX512)
  const __m512d all = _mm512_castps_pd(floats.native);
  return {
      Vector<double>(_mm512_cvtps_pd(_mm512_castps512_ps256(floats.native))),
      Vector<double>(_mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd(all, 1))))};
#elif defined(CPU_CAPABILITY_AVX2)
  return {
      Vector<double>(_mm256_cvtps_pd(_mm256_castps256_ps128(floats.native))),
      Vector<double>(_mm256_cvtps_pd(_mm256_extractf128_ps(floats.native, 1)))};
#elif defined(__aarch64__)
  const auto all = std::bit_cast<float32x4_t>(floats.native);
  return {
      Vector<double>(std::bit_cast<Native<double> >(vcvt_f64_f32(vget_low_f32(all)))),
      Vector<double>(std::bit_cast<Native<double> >(vcvt_high_f64_f32(all)))};
#else
  std::array<Vector<double>, 2> doubles;
  for (int i = 0; i < Vector<float>::kSize; ++i) {
    doubles[i / Vector<double>::kSize].native[i % Vector<double>::kSize] =
        static_cast<double>(floats.native[i]);
  }
  return doubles;
#endif
}

}  // namespace torch_ext::cpu::CPU_CAPABILITY
