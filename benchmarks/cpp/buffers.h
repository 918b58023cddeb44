// Memory that is the same for every contender: placed with care, huge pages where they matter.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

namespace torch_ext::bench {

class Buffer {
 public:
  // `bytes` bytes that begin `offset` bytes after the start of a page. Not written to: that is left
  // to whoever fills it.
  Buffer(size_t bytes, size_t offset) : offset_(offset) {
    const size_t alignment = bytes >= kHugePage ? kHugePage : kPage;
    const size_t size = (bytes + offset + alignment - 1) / alignment * alignment;
    memory_.reset(std::aligned_alloc(alignment, size));
    if (memory_ == nullptr) {
      throw std::bad_alloc();
    }
    if (alignment == kHugePage) {
      madvise(memory_.get(), size, MADV_HUGEPAGE);
    }
  }

  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(static_cast<std::byte*>(memory_.get()) + offset_);
  }

 private:
  static constexpr size_t kPage = 4096;
  static constexpr size_t kHugePage = size_t{2} << 20;

  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };

  size_t offset_;
  std::unique_ptr<void, Free> memory_;
};

}  // namespace torch_ext::bench
