#include "ops/build_info.h"

#include <torch_ext/prelu.h>

#include "build_info_generated.h"

namespace torch_ext {

const char* version() {
  return kVersion;
}

const char* build_info() {
  return kBuildInfo;
}

}  // namespace torch_ext
