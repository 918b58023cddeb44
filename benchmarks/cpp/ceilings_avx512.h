// The passes of ceilings.h for machines with AVX-512. Temporal stores leave the result in the
// caches; non-temporal ones go past them, and so spare reading what they overwrite.
#pragma once

#include <cstddef>

namespace torch_ext::bench::avx512 {

void copy(void* out, const void* const* in, size_t bytes);
void copy_non_temporal(void* out, const void* const* in, size_t bytes);
void stream(void* out, const void* const* in, size_t bytes);
void stream_non_temporal(void* out, const void* const* in, size_t bytes);

}  // namespace torch_ext::bench::avx512
