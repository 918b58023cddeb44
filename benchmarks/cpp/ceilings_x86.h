// The passes of ceilings.h in vectors of any size. Each instruction set includes this in a source
// of its own, which is compiled for it and includes nothing else with inline functions: the linker
// would be free to take those for machines that lack the instructions. Therefore all of this is in
// an anonymous namespace, too.
//
// `Isa` has the type Vector and load, store (at any address), store_aligned, stream (past the
// caches) and exclusive_or.
//
// Tuned on Zen 3 (AVX2) over 8 KB to 208 MB: groups of 4, 8 and 16 vectors, prefetches 0.5 to 2 KB
// ahead and several pages at a time were all within noise of this or slower.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "ceilings_passes.h"

namespace torch_ext::bench {
namespace {

constexpr size_t kLine = 64;
constexpr int kGroup = 8;

template <typename Isa, int kInputs>
struct Inputs {
  const char* a;
  const char* b;

  explicit Inputs(const void* const* in)
      : a(static_cast<const char*>(in[0])),
        b(kInputs == 2 ? static_cast<const char*>(in[1]) : nullptr) {}

  typename Isa::Vector at(size_t offset) const {
    if constexpr (kInputs == 1) {
      return Isa::load(a + offset);
    } else {
      return Isa::exclusive_or(Isa::load(a + offset), Isa::load(b + offset));
    }
  }

  char byte_at(size_t offset) const {
    return kInputs == 1 ? a[offset] : static_cast<char>(a[offset] ^ b[offset]);
  }
};

// Whole groups from `at` on; returns where they end. All loads of a group come before its first
// store: a load that follows a store with the same last 12 address bits would wait for it.
template <typename Isa, int kInputs, bool kNonTemporal>
size_t groups(char* out, const Inputs<Isa, kInputs>& in, size_t at, size_t bytes) {
  constexpr size_t kVector = sizeof(typename Isa::Vector);
  for (; at + kGroup * kVector <= bytes; at += kGroup * kVector) {
    typename Isa::Vector values[kGroup];
#pragma GCC unroll 8
    for (int i = 0; i < kGroup; ++i) {
      values[i] = in.at(at + i * kVector);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kGroup; ++i) {
      if constexpr (kNonTemporal) {
        Isa::stream(out + at + i * kVector, values[i]);
      } else {
        Isa::store_aligned(out + at + i * kVector, values[i]);
      }
    }
  }
  if constexpr (kNonTemporal) {
    _mm_sfence();  // part of the price: whoever reads the result next must see it
  }
  return at;
}

template <typename Isa, int kInputs, bool kNonTemporal>
void pass(void* to, const void* const* from, size_t bytes) {
  constexpr size_t kVector = sizeof(typename Isa::Vector);
  char* const out = static_cast<char*>(to);
  const Inputs<Isa, kInputs> in(from);
  if (bytes < kVector) {
    for (size_t i = 0; i < bytes; ++i) {
      out[i] = in.byte_at(i);
    }
    return;
  }
  size_t at = 0;
  if (bytes >= kLine + kGroup * kVector) {
    // Stores begin on a cache line; the elements before it are written once more where need be.
    for (size_t i = 0; i < kLine; i += kVector) {
      Isa::store(out + i, in.at(i));
    }
    at = kLine - reinterpret_cast<uintptr_t>(out) % kLine;
    at = groups<Isa, kInputs, kNonTemporal>(out, in, at, bytes);
  }
  for (; at + kVector <= bytes; at += kVector) {
    Isa::store(out + at, in.at(at));
  }
  if (at < bytes) {
    Isa::store(out + bytes - kVector, in.at(bytes - kVector));
  }
}

template <typename Isa>
constexpr Passes passes_of() {
  return {pass<Isa, 1, false>, pass<Isa, 1, true>, pass<Isa, 2, false>, pass<Isa, 2, true>};
}

}  // namespace
}  // namespace torch_ext::bench
