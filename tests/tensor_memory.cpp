// Where tensors get their memory in a process that preloads this (LD_PRELOAD): beside pages that
// must not be touched, or nowhere. For tests/tensor_memory.py, which compiles it; no torch in here.
//
// PyTorch takes the memory of CPU tensors from posix_memalign, one call for each.
#include <sys/mman.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>

extern "C" {
void* __libc_memalign(size_t alignment, size_t bytes);
void __libc_free(void* memory);
}

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kPages = size_t{1} << 23;  // 32 GiB of addresses: none is used twice

enum Guard { kNone, kBehind, kBefore };

std::atomic<int> guard = kNone;
std::atomic<long> taken = 0;
std::atomic<long> failing = 0;  // the number of the call that fails; 0: none
std::atomic<size_t> next_page = 0;
uint32_t pages_at[kPages];  // of the block that starts at this page

// All addresses, none of them usable: what lies between blocks stays so.
char* region() {
  static char* const begin = static_cast<char*>(
      mmap(nullptr, kPages * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  return begin;
}

std::atomic<char*> region_in_use = nullptr;

void* beside_a_guard_page(size_t bytes) {
  const size_t pages = (bytes + kPage - 1) / kPage;
  const size_t page = next_page.fetch_add(pages + 2) + 1;
  if (region() == MAP_FAILED || page + pages >= kPages) {
    return nullptr;
  }
  region_in_use = region();
  char* begin = region() + page * kPage;
  if (mprotect(begin, pages * kPage, PROT_READ | PROT_WRITE) != 0) {
    return nullptr;
  }
  pages_at[page] = static_cast<uint32_t>(pages);
  return guard == kBehind ? begin + pages * kPage - bytes : begin;
}

}  // namespace

extern "C" {

void torch_ext_test_guard(int where) {
  guard = where;
}

// The count-th call from now on fails; 0: none does.
void torch_ext_test_fail(long count) {
  taken = 0;
  failing = count;
}

long torch_ext_test_taken() {
  return taken;
}

int posix_memalign(void** memory, size_t alignment, size_t bytes) noexcept {
  if (++taken == failing) {
    return ENOMEM;
  }
  void* const found =
      guard != kNone && bytes > 0 ? beside_a_guard_page(bytes) : __libc_memalign(alignment, bytes);
  if (found == nullptr) {
    return ENOMEM;
  }
  *memory = found;
  return 0;
}

void free(void* memory) noexcept {
  char* const begin = region_in_use;
  const auto offset = static_cast<size_t>(static_cast<char*>(memory) - begin);
  if (begin == nullptr || memory == nullptr || offset >= kPages * kPage) {
    __libc_free(memory);
    return;
  }
  // Fresh pages without access: memory goes back, and a use after this faults.
  const size_t page = offset / kPage;
  mmap(
      begin + page * kPage, pages_at[page] * kPage, PROT_NONE,
      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

}  // extern "C"
