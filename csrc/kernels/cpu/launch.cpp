#include "kernels/cpu/launch.h"

#include <ATen/Version.h>
#include <c10/util/Exception.h>

#include <string>

#include "kernels/cpu/last_level_cache.h"

namespace torch_ext::cpu {

InstructionSet instruction_set_in_use() {
  static const InstructionSet chosen = [] {
    const std::string name = at::get_cpu_capability();
    if (const auto set = instruction_set_named(name)) {
      return *set;
    }
#if !defined(__aarch64__)  // where PyTorch may say SVE, and our kernels are compiled for NEON alone
    TORCH_WARN(
        "torch_ext: PyTorch runs on the instruction set ", name,
        ", for which torch_ext has no kernels of its own: the portable ones run.");
#endif
    return InstructionSet::DEFAULT;
  }();
  return chosen;
}

Tuning tuning_in_use() {
  static const LastLevelCache cache = last_level_cache();
  Tuning tuning;
  if (cache.bytes > 0) {
    tuning.last_level_bytes = cache.usable_bytes(at::get_num_threads());
  }
  return tuning;
}

}  // namespace torch_ext::cpu
