// What this library was built from and for.
#pragma once

#include <torch_ext/export.h>

namespace torch_ext {

// A JSON object: version, torch, cuda (null without), archs, cpu_capabilities, openmp, git.
TORCH_EXT_API const char* build_info();

// Of cpu_capabilities, the one whose kernels run.
TORCH_EXT_API const char* instruction_set();

}  // namespace torch_ext
