// Compiled with -mavx512f.
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

const Passes kPasses = passes_of<Isa>();

}  // namespace torch_ext::bench::avx512
