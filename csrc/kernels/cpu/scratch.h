// Small arrays on a task's stack.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace torch_ext::cpu::CPU_CAPABILITY {

// Up to kCapacity values on the stack, of which only those asked for are ever initialised: a task
// must stay cheap for tensors of a few elements.
template <typename T, int64_t kCapacity>
class Scratch {
 public:
  // No destructors run: for plain values.
  void reset(int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      new (data() + i) T();
    }
  }
  T* data() { return reinterpret_cast<T*>(bytes_); }
  T& operator[](int64_t i) { return data()[i]; }

 private:
  alignas(64) std::byte bytes_[kCapacity * sizeof(T)];
};

}  // namespace torch_ext::cpu::CPU_CAPABILITY
