// What memory allows: passes that move the bytes of a kernel and compute next to nothing, each in
// several ways, of which the fastest is the ceiling for that size. No way is the fastest for all:
// stores past the caches win where the tensors do not fit in them, and lose badly where they do.
// 32-byte vectors at the most: in the first-level cache of a machine with AVX-512 that is no
// ceiling.
#pragma once

#include <cstddef>
#include <span>

namespace torch_ext::bench {

// out = in[0], or out = in[0] ^ in[1], on ranges that do not overlap.
using Pass = void (*)(void* out, const void* const* in, size_t bytes);

struct Ceiling {
  const char* name;
  Pass run;
};

std::span<const Ceiling> copies();   // one in, one out: the traffic of forward
std::span<const Ceiling> streams();  // two in, one out: the traffic of backward

}  // namespace torch_ext::bench
