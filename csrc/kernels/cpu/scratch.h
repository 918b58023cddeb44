// Memory that a task needs while it runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace torch_ext::cpu::CPU_CAPABILITY {

// On the stack if it is small, which keeps small tensors cheap, else on the heap, because worker
// threads may have stacks of 64 KiB (OMP_STACKSIZE, musl). Not initialised; for plain values.
class Scratch {
 public:
  explicit Scratch(int64_t bytes)
      : heap_(
            bytes > static_cast<int64_t>(sizeof(stack_))
                ? static_cast<std::byte*>(::operator new(bytes, kAlignment))
                : nullptr),
        free_(heap_ ? heap_.get() : stack_) {}

  // The next `count` of them; 64-byte aligned.
  template <typename T>
  T* take(int64_t count) {
    T* const first = std::launder(reinterpret_cast<T*>(free_));
    free_ += size<T>(count);
    return first;
  }

  // How many of the constructor's bytes take() needs.
  template <typename T>
  static constexpr int64_t size(int64_t count) {
    return (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(std::byte* memory) const { ::operator delete(memory, kAlignment); }
  };

  alignas(64) std::byte stack_[8192];
  std::unique_ptr<std::byte, Free> heap_;
  std::byte* free_;
};

}  // namespace torch_ext::cpu::CPU_CAPABILITY
