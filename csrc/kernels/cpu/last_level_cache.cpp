#include "kernels/cpu/last_level_cache.h"

#include <algorithm>
#include <bit>
#include <fstream>

namespace torch_ext::cpu {

// The size is "32768K", the cores are a mask of 32 bits a group, "00000000,000000ff".
LastLevelCache last_level_cache(const std::string& folder) {
  int64_t kibibytes = 0;
  std::ifstream(folder + "/size") >> kibibytes;
  std::ifstream mask(folder + "/shared_cpu_map");
  int64_t cores = 0;
  for (uint32_t group = 0; mask >> std::hex >> group; mask.ignore()) {
    cores += std::popcount(group);
  }
  return {kibibytes << 10, std::max<int64_t>(cores, 1)};
}

}  // namespace torch_ext::cpu
