// One case in memory, and everything that is timed on it. All contenders work on the same three
// buffers, so that none has luckier pages than another.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <string>

#include "buffers.h"
#include "cases.h"
#include "ceilings.h"

namespace torch_ext::bench {

class Problem {
 public:
  virtual ~Problem() = default;

  // All contenders' results against plain loops. Throws std::runtime_error where they differ.
  void check(int threads);

  virtual void forward(int threads) = 0;   // result = prelu(input)
  virtual void backward(int threads) = 0;  // result = grad_input, and grad_weight

  void copy(Pass pass, int threads) { run(pass, {&input_, nullptr}, threads); }
  void stream(Pass pass, int threads) { run(pass, {&grad_output_, &input_}, threads); }

  size_t bytes() const { return bytes_; }  // of one tensor

 protected:
  Problem(const Case& benchmark_case, size_t element_size);

  virtual void check_kernels(int threads) = 0;
  [[noreturn]] void fail(const std::string& what) const;

  const std::string title_;
  const size_t element_size_;
  const size_t bytes_;
  const Buffer result_;
  const Buffer input_;
  const Buffer grad_output_;

 private:
  void check_ceilings(int threads);
  void run(Pass pass, const std::array<const Buffer*, 2>& inputs, int threads);
};

std::unique_ptr<Problem> make_problem(const Case& benchmark_case);

// The instruction set whose kernels run.
const char* capability();

}  // namespace torch_ext::bench
