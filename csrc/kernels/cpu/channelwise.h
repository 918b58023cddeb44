// Channelwise work, task by task: runs an operation over all elements with the slope that belongs
// to each, maps them to an output and sums a term per channel, in one pass over memory.
#pragma once

#include <atomic>
#include <cstdint>

#include "kernels/cpu/columns.h"
#include "kernels/cpu/planes.h"

namespace torch_ext::cpu::CPU_CAPABILITY {

// Tasks first ... last - 1.
template <typename Op, typename scalar_t, typename weight_t>
void run_tasks(
    const ChannelTasks& tasks,
    int64_t first,
    int64_t last,
    const ChannelwiseOperands<scalar_t, weight_t, Op::kInputs>& operands,
    const ChannelSums<acc_type<scalar_t>, weight_t>& sums) {
  if (tasks.walk() == Walk::planes) {
    PlanesWalker<Op, scalar_t, weight_t>(tasks, operands, sums).run(first, last);
  } else {
    ColumnsWalker<Op, scalar_t, weight_t>(tasks, operands, sums).run(first, last);
  }
  if (operands.bypass_caches) {
    // Such stores are ordered by nothing weaker; other threads will read them.
    std::atomic_thread_fence(std::memory_order_seq_cst);
  }
}

}  // namespace torch_ext::cpu::CPU_CAPABILITY
