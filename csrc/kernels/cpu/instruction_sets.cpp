#include "kernels/cpu/instruction_sets.h"

namespace torch_ext::cpu {

const char* name_of(InstructionSet set) {
  switch (set) {
#define TORCH_EXT_INSTRUCTION_SET(NAME, ...) \
  case InstructionSet::NAME:                 \
    return #NAME;
#include "kernels/cpu/instruction_sets.def"
#undef TORCH_EXT_INSTRUCTION_SET
  }
  return "";
}

std::optional<InstructionSet> instruction_set_named(std::string_view name) {
#define TORCH_EXT_INSTRUCTION_SET(NAME, ...) \
  if (name == #NAME) {                       \
    return InstructionSet::NAME;             \
  }
#include "kernels/cpu/instruction_sets.def"
#undef TORCH_EXT_INSTRUCTION_SET
  return std::nullopt;
}

std::vector<InstructionSet> supported_instruction_sets() {
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
