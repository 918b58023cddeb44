#include "ceilings.h"

#include <array>
#include <cstring>

#include "ceilings_passes.h"

namespace torch_ext::bench {
namespace {

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2");
}
bool has_avx512() {
  return __builtin_cpu_supports("avx512f");
}
#endif

void copy_memcpy(void* out, const void* const* in, size_t bytes) {
  std::memcpy(out, in[0], bytes);
}

// The compiler vectorises it as the build's flags allow.
void stream_loop(void* out, const void* const* in, size_t bytes) {
  auto* __restrict to = static_cast<unsigned char*>(out);
  const auto* __restrict a = static_cast<const unsigned char*>(in[0]);
  const auto* __restrict b = static_cast<const unsigned char*>(in[1]);
  for (size_t i = 0; i < bytes; ++i) {
    to[i] = a[i] ^ b[i];
  }
}

}  // namespace

std::span<const Ceiling> copies() {
#if defined(__x86_64__)
  static const std::array<Ceiling, 5> kAll{{
      {"memcpy", copy_memcpy},
      {"avx2", avx2::kPasses.copy},
      {"avx2-nt", avx2::kPasses.copy_non_temporal},
      {"avx512", avx512::kPasses.copy},
      {"avx512-nt", avx512::kPasses.copy_non_temporal},
  }};
  if (has_avx2()) {
    return std::span(kAll).first(has_avx512() ? 5 : 3);
  }
#endif
  static constexpr std::array<Ceiling, 1> kPortable{{{"memcpy", copy_memcpy}}};
  return kPortable;
}

std::span<const Ceiling> streams() {
#if defined(__x86_64__)
  static const std::array<Ceiling, 4> kAll{{
      {"avx2", avx2::kPasses.stream},
      {"avx2-nt", avx2::kPasses.stream_non_temporal},
      {"avx512", avx512::kPasses.stream},
      {"avx512-nt", avx512::kPasses.stream_non_temporal},
  }};
  if (has_avx2()) {
    return std::span(kAll).first(has_avx512() ? 4 : 2);
  }
#endif
  static constexpr std::array<Ceiling, 1> kPortable{{{"loop", stream_loop}}};
  return kPortable;
}

}  // namespace torch_ext::bench
