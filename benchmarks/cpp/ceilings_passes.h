// The passes of ceilings.h for machines with AVX2 and with AVX-512. Temporal stores leave the
// result in the caches; non-temporal ones go past them, and so spare reading what they overwrite.
#pragma once

#include <cstddef>

namespace torch_ext::bench {

// out = in[0], or out = in[0] ^ in[1], on ranges that do not overlap.
using Pass = void (*)(void* out, const void* const* in, size_t bytes);

struct Passes {
  Pass copy;
  Pass copy_non_temporal;
  Pass stream;
  Pass stream_non_temporal;
};

namespace avx2 {
extern const Passes kPasses;
}
namespace avx512 {
extern const Passes kPasses;
}

}  // namespace torch_ext::bench
