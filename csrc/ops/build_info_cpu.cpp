#include "kernels/cpu/launch.h"
#include "ops/build_info.h"

namespace torch_ext {

const char* instruction_set() {
  return cpu::name_of(cpu::instruction_set_in_use());
}

}  // namespace torch_ext
