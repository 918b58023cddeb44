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

}  // namespace torch_ext::cpu
