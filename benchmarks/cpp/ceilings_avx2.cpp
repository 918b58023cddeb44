// Compiled with -mavx2.
#include "ceilings_x86.h"

namespace torch_ext::bench::avx2 {
namespace {

struct Isa {
  using Vector = __m256i;

  static Vector load(const char* from) {
    return _mm256_loadu_si256(reinterpret_cast<const Vector*>(from));
  }
  static void store(char* to, const Vector& value) {
    _mm256_storeu_si256(reinterpret_cast<Vector*>(to), value);
  }
  static void store_aligned(char* to, const Vector& value) {
    _mm256_store_si256(reinterpret_cast<Vector*>(to), value);
  }
  static void stream(char* to, const Vector& value) {
    _mm256_stream_si256(reinterpret_cast<Vector*>(to), value);
  }
  static Vector exclusive_or(const Vector& a, const Vector& b) { return _mm256_xor_si256(a, b); }
};

}  // namespace

const Passes kPasses = passes_of<Isa>();

}  // namespace torch_ext::bench::avx2
