#include "kernels/cpu/launch.h"

#include <ATen/Version.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <fstream>
#include <string>

namespace torch_ext::cpu {
namespace {

// A processor may have several last-level caches, each shared by a few of its cores.
struct LastLevelCache {
  int64_t bytes = 0;  // unknown
  int64_t cores = 1;
};

// As Linux describes the first one: "32768K", and the cores as a mask, "00000000,000000ff".
LastLevelCache last_level_cache() {
  const std::string folder = "/sys/devices/system/cpu/cpu0/cache/index3/";
  int64_t kibibytes = 0;
  std::ifstream(folder + "size") >> kibibytes;
  std::string mask;
  std::ifstream(folder + "shared_cpu_map") >> mask;
  int64_t cores = 0;
  for (const char digit : mask) {
    const auto bits = static_cast<unsigned>(std::string("0123456789abcdef").find(digit) & 0xf);
    cores += digit == ',' ? 0 : std::popcount(bits);
  }
  return {kibibytes << 10, std::max<int64_t>(cores, 1)};
}

}  // namespace

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
    tuning.last_level_bytes = cache.bytes * ceil_div(int64_t{at::get_num_threads()}, cache.cores);
  }
  return tuning;
}

}  // namespace torch_ext::cpu
