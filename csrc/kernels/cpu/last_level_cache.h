// What Linux says of the processor's last-level cache.
#pragma once

#include <cstdint>
#include <string>

namespace torch_ext::cpu {

// A processor may have several, each shared by a few of its cores.
struct LastLevelCache {
  int64_t bytes = 0;  // unknown
  int64_t cores = 1;

  // What a number of threads can use of them, if neighbouring cores run them: an eighth belongs to
  // the rest of the world. (Zen 5, 32 MiB, a backward and a pass that reads its result: bypassing
  // the caches takes 0.9 to 1.3 of the time at 20 to 25 MB, 0.7 to 0.9 at 29 to 33.)
  int64_t usable_bytes(int64_t threads) const {
    return bytes / 8 * 7 * ((threads + cores - 1) / cores);
  }
};

// The one of the first core.
LastLevelCache last_level_cache(
    const std::string& folder = "/sys/devices/system/cpu/cpu0/cache/index3");

}  // namespace torch_ext::cpu
