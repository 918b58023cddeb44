// What the fuzzer's bytes stand for: arguments of both operators, right or wrong, of any layout.
#pragma once

#include <torch/types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace torch_ext::fuzz {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// A tensor whose memory ends with its last element, so that the address sanitizer sees one more.
struct Operand {
  at::Tensor tensor;
  std::unique_ptr<std::byte[], Free> memory;
  std::vector<std::byte> original;  // what the memory held before anything was called

  bool untouched() const;
};

struct Problem {
  Operand input, weight, grad_output;
  std::array<bool, 2> output_mask;
  bool by_autograd;

  std::string description() const;
};

// `missing`: elements by which every memory is too short (none, unless a fault is planted).
Problem decode(const uint8_t* bytes, size_t size, int64_t missing);

}  // namespace torch_ext::fuzz
