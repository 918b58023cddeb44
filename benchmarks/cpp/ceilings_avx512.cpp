// Compiled with -mavx512f.
#include "ceilings_avx512.h"

#include "ceilings_x86.h"

namespace torch_ext::bench::avx512 {
namespace {

struct Isa {
  using Vector = __m512i;

  static Vector load(const char* from) {
    return _mm512_loadu_si512(reinterpret_cast<const Vector*>(from));
  }
  static void store(char* to, const Vector& value) {
    _mm512_storeu_si512(reinterpret_cast<Vector*>(to), value);
  }
  static void store_aligned(char* to, const Vector& value) {
    _mm512_store_si512(reinterpret_cast<Vector*>(to), value);
  }
  static void stream(char* to, const Vector& value) {
    _mm512_stream_si512(reinterpret_cast<Vector*>(to), value);
  }
  static Vector exclusive_or(const Vector& a, const Vector& b) { return _mm512_xor_si512(a, b); }
};

}  // namespace

void copy(void* out, const void* const* in, size_t bytes) {
  pass<Isa, 1, false>(out, in, bytes);
}
void copy_non_temporal(void* out, const void* const* in, size_t bytes) {
  pass<Isa, 1, true>(out, in, bytes);
}
void stream(void* out, const void* const* in, size_t bytes) {
  pass<Isa, 2, false>(out, in, bytes);
}
void stream_non_temporal(void* out, const void* const* in, size_t bytes) {
  pass<Isa, 2, true>(out, in, bytes);
}

}  // namespace torch_ext::bench::avx512
