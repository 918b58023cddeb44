// Sweeps on PyTorch's threads, by the instruction set that PyTorch itself runs on. (Beside
// kernels/cuda/launch.cuh the only part of the kernels that knows PyTorch.)
#pragma once

#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>

#include <utility>

#include "kernels/cpu/sweep.h"

namespace torch_ext::cpu {

// Chosen once, by at::get_cpu_capability(), so that ATEN_CPU_CAPABILITY applies to both. Warns if
// the engine was not compiled for the instruction set that PyTorch names.
InstructionSet instruction_set_in_use();

// The tuning for this machine and the number of threads.
Tuning tuning_in_use();

// A Runtime of sweep.h.
struct PyTorch {
  template <typename Body>
  void parallel_for(int64_t size, int64_t grain, const Body& body) const {
    at::parallel_for(0, size, grain, body);
  }
  Memory allocate(int64_t bytes) const {
    c10::Allocator* const allocator = c10::GetCPUAllocator();
    return {allocator->raw_allocate(bytes), allocator->raw_deleter()};
  }
};

// `stream`: large results may use non-temporal stores, which bypass the caches. `tensors`: how many
// the sweeps touch together.
template <typename... Sweeps>
void run(const ChannelView& view, bool stream, int tensors, Sweeps... sweeps) {
  run(view, {instruction_set_in_use(), stream, tensors, tuning_in_use()}, PyTorch(),
      std::move(sweeps)...);
}

}  // namespace torch_ext::cpu
