// The instruction sets that the engine is compiled for, by name, and which of them this machine
// has.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

namespace torch_ext::cpu {

enum class InstructionSet {
#define TORCH_EXT_INSTRUCTION_SET(NAME, ...) NAME,
#include "kernels/cpu/instruction_sets.def"
#undef TORCH_EXT_INSTRUCTION_SET
};

const char* name_of(InstructionSet set);
std::optional<InstructionSet> instruction_set_named(std::string_view name);

// The best one last. (For tests and benchmarks; the library asks PyTorch.)
inline std::vector<InstructionSet> supported_instruction_sets() {
  std::vector<InstructionSet> sets;
#define TORCH_EXT_INSTRUCTION_SET(NAME, PROCESSOR, FLAGS, SUPPORTED) \
  if (SUPPORTED) {                                                   \
    sets.push_back(InstructionSet::NAME);                            \
  }
#include "kernels/cpu/instruction_sets.def"
#undef TORCH_EXT_INSTRUCTION_SET
  return sets;
}

}  // namespace torch_ext::cpu
