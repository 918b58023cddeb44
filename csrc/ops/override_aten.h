// What torch_ext::OverrideAten calls, in two halves, for languages without destructors.
#pragma once

#include <torch_ext/export.h>

namespace torch_ext {

// Each call of enter must be followed by one of leave, in any thread; the first enter of a process
// while no other thread calls aten::prelu. enter throws if another library has replaced
// aten::prelu; leave throws if nothing is open.
TORCH_EXT_API void enter_override_aten();
TORCH_EXT_API void leave_override_aten();

}  // namespace torch_ext
