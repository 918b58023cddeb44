// The layout of a dense tensor as every kernel sees it. Knows no tensors.
#pragma once

#include <cstdint>

namespace torch_ext {

// A dense tensor in memory order: `outer` blocks of `channels` runs of `inner` neighbours. All
// elements of a run belong to one channel.
//   contiguous (N, C, H, W)   -> {N, C, H*W}
//   channels-last, or (N, C)  -> {N*H*W, C, 1}
//   one slope for everything  -> {1, 1, numel}
struct ChannelView {
  int64_t outer;
  int64_t channels;
  int64_t inner;

  constexpr int64_t numel() const { return outer * channels * inner; }
};

// The two ways to traverse memory.
//   planes   runs are long: a channel's values stay in registers while a run is walked
//   columns  runs are short: memory is a matrix of rows, and each of its columns has its channel
enum class Traversal { kPlanes, kColumns };

template <typename T>
constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

template <typename T>
constexpr T round_up(T a, T b) {
  return ceil_div(a, b) * b;
}

template <typename T>
constexpr T round_down(T a, T b) {
  return a / b * b;
}

}  // namespace torch_ext
