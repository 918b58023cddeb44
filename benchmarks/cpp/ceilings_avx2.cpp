// Compiled with -mavx2. Includes nothing with inline functions that other sources might use: the
// linker would be free to take the AVX2 copy for machines that have none.
//
// Tuned on Zen 3 over 8 KB to 208 MB: groups of 4, 8 and 16 vectors, prefetches 0.5 to 2 KB ahead
// and several pages at a time were all within noise of this or slower.
#include "ceilings_avx2.h"

#include <immintrin.h>

#include <cstdint>

namespace torch_ext::bench::avx2 {
namespace {

constexpr size_t kVector = 32;
constexpr size_t kLine = 64;
constexpr int kGroup = 8;

template <int kInputs>
struct Inputs {
  const char* a;
  const char* b;

  explicit Inputs(const void* const* in)
      : a(static_cast<const char*>(in[0])),
        b(kInputs == 2 ? static_cast<const char*>(in[1]) : nullptr) {}

  __m256i at(size_t offset) const {
    const __m256i value = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + offset));
    if constexpr (kInputs == 1) {
      return value;
    } else {
      return _mm256_xor_si256(
          value, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + offset)));
    }
  }

  char byte_at(size_t offset) const {
    return kInputs == 1 ? a[offset] : static_cast<char>(a[offset] ^ b[offset]);
  }
};

void put(char* to, const __m256i& value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value);
}

template <bool kNonTemporal>
void put_aligned(char* to, const __m256i& value) {
  if constexpr (kNonTemporal) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), value);
  } else {
    _mm256_store_si256(reinterpret_cast<__m256i*>(to), value);
  }
}

// Whole groups from `at` on; returns where they end. All loads of a group come before its first
// store: a load that follows a store with the same last 12 address bits would wait for it.
template <int kInputs, bool kNonTemporal>
size_t groups(char* out, const Inputs<kInputs>& in, size_t at, size_t bytes) {
  for (; at + kGroup * kVector <= bytes; at += kGroup * kVector) {
    __m256i values[kGroup];
#pragma GCC unroll 8
    for (int i = 0; i < kGroup; ++i) {
      values[i] = in.at(at + i * kVector);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kGroup; ++i) {
      put_aligned<kNonTemporal>(out + at + i * kVector, values[i]);
    }
  }
  if constexpr (kNonTemporal) {
    _mm_sfence();  // part of the price: whoever reads the result next must see it
  }
  return at;
}

template <int kInputs, bool kNonTemporal>
void pass(void* to, const void* const* from, size_t bytes) {
  char* const out = static_cast<char*>(to);
  const Inputs<kInputs> in(from);
  if (bytes < kVector) {
    for (size_t i = 0; i < bytes; ++i) {
      out[i] = in.byte_at(i);
    }
    return;
  }
  size_t at = 0;
  if (bytes >= kLine + kGroup * kVector) {
    // Stores begin on a cache line; the elements before it are written once more where need be.
    put(out, in.at(0));
    put(out + kVector, in.at(kVector));
    at = kLine - reinterpret_cast<uintptr_t>(out) % kLine;
    at = groups<kInputs, kNonTemporal>(out, in, at, bytes);
  }
  for (; at + kVector <= bytes; at += kVector) {
    put(out + at, in.at(at));
  }
  if (at < bytes) {
    put(out + bytes - kVector, in.at(bytes - kVector));
  }
}

}  // namespace

void copy(void* out, const void* const* in, size_t bytes) {
  pass<1, false>(out, in, bytes);
}
void copy_non_temporal(void* out, const void* const* in, size_t bytes) {
  pass<1, true>(out, in, bytes);
}
void stream(void* out, const void* const* in, size_t bytes) {
  pass<2, false>(out, in, bytes);
}
void stream_non_temporal(void* out, const void* const* in, size_t bytes) {
  pass<2, true>(out, in, bytes);
}

}  // namespace torch_ext::bench::avx2
