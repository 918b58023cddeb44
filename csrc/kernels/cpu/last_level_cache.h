// What Linux says of the processor's last-level cache.
#pragma once

#include <cstdint>
#include <string>

namespace torch_ext::cpu {

// A processor may have several, each shared by a few of its cores.
struct LastLevelCache {
  int64_t bytes = 0;  // unknown
  int64_t cores = 1;
};

// The one of the first core.
LastLevelCache last_level_cache(
    const std::string& folder = "/sys/devices/system/cpu/cpu0/cache/index3");

}  // namespace torch_ext::cpu
