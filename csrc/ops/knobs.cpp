#include "ops/knobs.h"

#include <cstdlib>
#include <string_view>

namespace torch_ext {
namespace {

bool environment_flag(const char* name, bool otherwise) {
  const char* value = std::getenv(name);  // NOLINT(concurrency-mt-unsafe): as PyTorch reads its own
  return value == nullptr || *value == '\0' ? otherwise : std::string_view(value) != "0";
}

}  // namespace

Knobs& knobs() {
  static Knobs instance{
      environment_flag("TORCH_EXT_HUGE_PAGES", true),
      environment_flag("TORCH_EXT_NT_STORES", true)};
  return instance;
}

}  // namespace torch_ext
