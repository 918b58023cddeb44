// What memory allows: passes that move the bytes of a kernel and compute next to nothing, each in
// several ways, of which the fastest is the ceiling for that size. No way is the fastest for all:
// stores past the caches win where the tensors do not fit in them, and lose badly where they do.
#pragma once

#include <span>

#include "ceilings_passes.h"

namespace torch_ext::bench {

struct Ceiling {
  const char* name;
  Pass run;
};

std::span<const Ceiling> copies();   // one in, one out: the traffic of forward
std::span<const Ceiling> streams();  // two in, one out: the traffic of backward

}  // namespace torch_ext::bench
