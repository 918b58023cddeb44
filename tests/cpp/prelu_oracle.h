// What the tests of the C++ interface share: exact data, PReLU's definition element by element in
// double, and comparisons.
#pragma once

#include <gtest/gtest.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <string>
#include <vector>

namespace torch_ext::testing {

using at::Tensor;

// Small integers, half of them negative, none zero: every product and sum of them is exact in every
// dtype and in any order, so that results can be compared bit for bit.
inline Tensor integers(at::IntArrayRef shape, int64_t largest) {
  using at::indexing::None, at::indexing::Slice;
  auto values = torch::randint(1, largest + 1, shape, torch::kDouble).flatten();
  values.index({Slice(None, None, 2)}).neg_();
  return values.view(shape);
}

inline Tensor slopes(int64_t count) {
  static const std::vector<double> kValues = {-1, 0.25, 2, 0, -0.5, 1, 0.5};
  std::vector<double> chosen;
  for (int64_t i = 0; i < count; ++i) {
    chosen.push_back(kValues[i % kValues.size()]);
  }
  return torch::tensor(chosen, torch::kDouble);
}

struct Results {
  Tensor output, grad_input, grad_weight;
};

// The definition, element by element, in double.
inline Results oracle(const Tensor& grad_output, const Tensor& input, const Tensor& weight) {
  const auto x = input.detach().to(torch::kDouble).contiguous();
  const auto g = grad_output.detach().to(torch::kDouble).contiguous();
  const auto w = weight.detach().to(torch::kDouble).contiguous();
  const int64_t channels = w.numel();
  int64_t inner = 1;
  for (int64_t dim = 2; dim < x.dim(); ++dim) {
    inner *= x.size(dim);
  }
  Results result{torch::empty_like(x), torch::empty_like(x), torch::zeros_like(w)};
  for (int64_t i = 0; i < x.numel(); ++i) {
    const int64_t channel = channels == 1 ? 0 : i / inner % channels;
    const double slope = w.data_ptr<double>()[channel];
    const double xi = x.data_ptr<double>()[i];
    const double gi = g.data_ptr<double>()[i];
    result.output.data_ptr<double>()[i] = xi > 0 ? xi : slope * xi;
    result.grad_input.data_ptr<double>()[i] = xi > 0 ? gi : slope * gi;
    result.grad_weight.data_ptr<double>()[channel] += xi > 0 ? 0 : xi * gi;
  }
  return result;
}

inline ::testing::AssertionResult both_branches(const Tensor& input) {
  const double positive = input.gt(0).to(torch::kDouble).mean().item<double>();
  if (positive >= 0.25 && positive <= 0.75) {
    return ::testing::AssertionSuccess();
  }
  return ::testing::AssertionFailure() << "the share of positive inputs is " << positive;
}

inline ::testing::AssertionResult same(const Tensor& actual, const Tensor& expected) {
  if (!actual.defined()) {
    return ::testing::AssertionFailure() << "an undefined tensor instead of\n" << expected;
  }
  if (actual.scalar_type() != expected.scalar_type() || !torch::equal(actual, expected)) {
    return ::testing::AssertionFailure() << actual << "\ninstead of\n" << expected;
  }
  return ::testing::AssertionSuccess();
}

// The message of the error that `call` raises; empty if it raises none.
template <typename Error = c10::Error, typename Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what_without_backtrace();
  }
  return "";
}

inline ::testing::AssertionResult contains(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) {
    return ::testing::AssertionSuccess();
  }
  return ::testing::AssertionFailure() << '"' << part << "\" is not in \"" << text << '"';
}

}  // namespace torch_ext::testing
