// 128-bit loads and stores, also from storage that is not aligned to them. Knows no layout.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/cuda/intrinsics.cuh"
#include "kernels/cuda/traversal.h"

namespace torch_ext::cuda {

// Neighbouring elements, as one load reads them.
template <typename scalar_t>
struct alignas(kPackBytes) Pack {
  static constexpr int kSize = kPackBytes / sizeof(scalar_t);
  scalar_t value[kSize];
};

struct Words {
  uint32_t word[kPackBytes / 4];
};

template <typename scalar_t>
__device__ __forceinline__ Words load_words(const scalar_t* source) {
  const uint4 words = load_128(source);
  return {{words.x, words.y, words.z, words.w}};
}

template <typename scalar_t>
__device__ __forceinline__ void store(scalar_t* target, const Pack<scalar_t>& pack) {
  const Words words = std::bit_cast<Words>(pack);
  store_128(target, {words.word[0], words.word[1], words.word[2], words.word[3]});
}

// The 16 bytes that start at offset `bytes` of the 32 bytes of low and high; the offset is even.
// All threads pass the same value, so the branches are uniform, and no array is indexed by a
// variable.
__device__ __forceinline__ Words join(const Words& low, const Words& high, int bytes) {
  uint32_t word[8];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    word[i] = low.word[i];
    word[4 + i] = high.word[i];
  }
#pragma unroll
  for (int i = 0; i < 6; ++i) {
    word[i] = (bytes & 8) != 0 ? word[i + 2] : word[i];
  }
#pragma unroll
  for (int i = 0; i < 5; ++i) {
    word[i] = (bytes & 4) != 0 ? word[i + 1] : word[i];
  }
  Words joined;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t halves = (word[i] >> 16) | (word[i + 1] << 16);
    joined.word[i] = (bytes & 2) != 0 ? halves : word[i];
  }
  return joined;
}

// Where two tensors have different 16-byte boundaries (kShifted), a pack of the one starts `shift`
// elements after a boundary of the other. It takes two aligned loads, of which the second is the
// first of the neighbouring thread and so comes from the cache.
template <bool kShifted, typename scalar_t>
__device__ __forceinline__ Pack<scalar_t> load(const scalar_t* source, int shift) {
  if constexpr (!kShifted) {
    return std::bit_cast<Pack<scalar_t>>(load_words(source));
  } else {
    const Words low = load_words(source - shift);
    const Words high = load_words(source - shift + Pack<scalar_t>::kSize);
    const int bytes = shift * static_cast<int>(sizeof(scalar_t));
    return std::bit_cast<Pack<scalar_t>>(join(low, high, bytes));
  }
}

// The part of a pack that is visited, with zeros around it.
template <typename scalar_t>
__device__ __forceinline__ Pack<scalar_t> load_part(const scalar_t* data, const PackPlace& place) {
  Pack<scalar_t> pack;
#pragma unroll
  for (int i = 0; i < Pack<scalar_t>::kSize; ++i) {
    pack.value[i] = place.has(i) ? data[place.position + i] : scalar_t(0.0f);
  }
  return pack;
}

template <typename scalar_t>
__device__ __forceinline__ void store_part(
    scalar_t* data, const PackPlace& place, const Pack<scalar_t>& pack) {
#pragma unroll
  for (int i = 0; i < Pack<scalar_t>::kSize; ++i) {
    if (place.has(i)) {
      data[place.position + i] = pack.value[i];
    }
  }
}

}  // namespace torch_ext::cuda
