// Defines run_tasks() for one instruction set, for the source file of an operator to instantiate.
#pragma once

#include "kernels/cpu/columns.h"
#include "kernels/cpu/planes.h"
#include "kernels/cpu/run_tasks.h"

namespace torch_ext::cpu::CPU_CAPABILITY {

template <typename Op, typename scalar_t>
void run_tasks(
    const Plan& plan, int64_t first, int64_t last, const Operands<Op, scalar_t>& operands) {
  if constexpr (Op::kSums > 0 && Op::kOutputs > 0) {
    if (operands.outputs[0] == nullptr) {
      using SumsOnly = WithoutOutputs<Op>;
      return run_tasks<SumsOnly, scalar_t>(
          plan, first, last, {operands.inputs, {}, operands.params, operands.partials});
    }
  }
  if (plan.traversal() == Traversal::kPlanes) {
    Planes<Op, scalar_t>(plan, operands).run(first, last);
  } else {
    Columns<Op, scalar_t>(plan, operands).run(first, last);
  }
#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
  if (operands.bypass_caches) {
    // Non-temporal stores are weakly ordered; fence before other threads read them.
    _mm_sfence();
  }
#endif
}

}  // namespace torch_ext::cpu::CPU_CAPABILITY

// Instantiates run_tasks() of an operation for every type of element.
#define TORCH_EXT_INSTANTIATE_FOR(Op, scalar_t)                          \
  template void torch_ext::cpu::CPU_CAPABILITY::run_tasks<Op, scalar_t>( \
      const torch_ext::cpu::Plan&, int64_t, int64_t,                     \
      const torch_ext::cpu::Operands<Op, scalar_t>&);
#define TORCH_EXT_INSTANTIATE(Op)          \
  TORCH_EXT_INSTANTIATE_FOR(Op, double)    \
  TORCH_EXT_INSTANTIATE_FOR(Op, float)     \
  TORCH_EXT_INSTANTIATE_FOR(Op, c10::Half) \
  TORCH_EXT_INSTANTIATE_FOR(Op, c10::BFloat16)
