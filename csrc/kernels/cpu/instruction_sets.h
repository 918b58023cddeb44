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
std::vector<InstructionSet> supported_instruction_sets();  // the best one last

}  // namespace torch_ext::cpu
