// One layout: how every kernel sees a dense tensor. Knows no tensors.
#pragma once

#include <cstdint>

namespace torch_ext {

// A dense tensor in memory order: `outer` blocks of `channels` runs of `inner` neighbours. All
// elements of a run share one slope.
//   contiguous (N, C, H, W)   -> {N, C, H*W}
//   channels-last, or (N, C)  -> {N*H*W, C, 1}
//   one slope for everything  -> {1, 1, numel}
struct ChannelView {
  int64_t outer;
  int64_t channels;
  int64_t inner;

  constexpr int64_t numel() const { return outer * channels * inner; }
};

}  // namespace torch_ext
