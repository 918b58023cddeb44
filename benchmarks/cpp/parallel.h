// The rule of at::parallel_for, without PyTorch and with the number of threads as an argument.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

#include "kernels/channel_view.h"

namespace torch_ext::bench {

// body(first, last) on neighbouring ranges of 0 ... size - 1, one per thread; `grain` indices are
// what makes another thread worth waking.
template <typename Body>
void parallel_for(int threads, int64_t size, int64_t grain, const Body& body) {
  const int64_t team = std::min<int64_t>(threads, ceil_div(size, grain));
  if (team <= 1) {
    body(int64_t{0}, size);
    return;
  }
  const int64_t share = ceil_div(size, team);
#pragma omp parallel num_threads(static_cast<int>(team))
  {
    const int64_t first = omp_get_thread_num() * share;
    if (first < size) {
      body(first, std::min(first + share, size));
    }
  }
}

}  // namespace torch_ext::bench
