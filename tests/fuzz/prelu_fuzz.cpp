// libFuzzer target (`make fuzz`): both operators, called through the dispatcher and through
// autograd on whatever the bytes stand for, against the oracle. An error is right where the
// contract asks for it; all else ends the program: a wrong value, stride or error, a changed
// argument, and, by the sanitizers, any access out of bounds.
//
// TORCH_EXT_FUZZ_CANARY=value makes the oracle wrong at zero, =bounds every memory one element too
// short: the fuzzer has to find either within seconds before it is believed.
#include <torch/csrc/autograd/autograd.h>
#include <torch_ext/prelu.h>

#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>

#include "oracle.h"
#include "problem.h"

namespace torch_ext::fuzz {
namespace {

const std::string kCanary = [] {
  const char* name = std::getenv("TORCH_EXT_FUZZ_CANARY");
  return std::string(name == nullptr ? "" : name);
}();
const Faults kFaults{kCanary == "value"};

[[noreturn]] void fail(const Problem& problem, const std::string& what) {
  std::fprintf(stderr, "WRONG: %s\n%s\n", what.c_str(), problem.description().c_str());
  std::abort();
}

// The message of the error that `call` raises; nothing if it raises none.
template <typename Call>
std::optional<std::string> error_of(const Call& call) {
  try {
    call();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return std::nullopt;
}

void check_error(
    const Problem& problem, const std::optional<std::string>& error, const std::string& expected) {
  if (!error && !expected.empty()) {
    fail(problem, "no error instead of: " + expected);
  }
  if (error && (expected.empty() || error->find(expected) == std::string::npos)) {
    fail(problem, "the error \"" + *error + "\" instead of \"" + expected + '"');
  }
}

void check_metadata(const Problem& problem, const at::Tensor& result, const at::Tensor& like) {
  const at::Tensor expected = at::empty_like(like);
  if (result.scalar_type() != like.scalar_type() || result.sizes() != like.sizes()) {
    fail(problem, "dtype or shape of a result");
  }
  for (int64_t d = 0; d < result.dim(); ++d) {
    if (result.numel() > 0 && result.size(d) > 1 && result.stride(d) != expected.stride(d)) {
      fail(problem, "strides of a result");
    }
  }
}

// result = what `values` become: the output for values = input, grad_input for grad_output.
template <typename scalar_t, typename weight_t>
void check_elements(
    const Problem& problem, const at::Tensor& result, const at::Tensor& values, const char* what) {
  const at::Tensor& input = problem.input.tensor;
  const at::Tensor& weight = problem.weight.tensor;
  check_metadata(problem, result, input);
  const auto* x = input.const_data_ptr<scalar_t>();
  const auto* v = values.const_data_ptr<scalar_t>();
  const auto* w = weight.const_data_ptr<weight_t>();
  const auto* y = result.const_data_ptr<scalar_t>();
  const int64_t step = weight.numel() == 1 ? 0 : weight.stride(0);
  for_each_element<3>({input, values, result}, [&](const auto& at, int64_t channel) {
    const weight_t slope = w[channel * step];
    const scalar_t expected = expected_element(x[at[0]], v[at[1]], slope, kFaults);
    if (!same(y[at[2]], expected)) {
      const std::string where = x[at[0]] == 0 ? " at zero is " : " is ";
      fail(
          problem, what + where + std::to_string(static_cast<double>(y[at[2]])) + " for x " +
                       std::to_string(static_cast<double>(x[at[0]])) + ", value " +
                       std::to_string(static_cast<double>(v[at[1]])) + ", slope " +
                       std::to_string(static_cast<double>(slope)));
    }
  });
}

template <typename scalar_t, typename weight_t>
void check_sums(const Problem& problem, const at::Tensor& grad_weight) {
  const at::Tensor& input = problem.input.tensor;
  check_metadata(problem, grad_weight, problem.weight.tensor.contiguous());
  std::vector<ExpectedSum<acc_of<scalar_t>>> sums(grad_weight.numel());
  const auto* x = input.const_data_ptr<scalar_t>();
  const auto* g = problem.grad_output.tensor.const_data_ptr<scalar_t>();
  const bool shared = grad_weight.numel() == 1;
  for_each_element<2>({input, problem.grad_output.tensor}, [&](const auto& at, int64_t channel) {
    sums[shared ? 0 : channel].add(static_cast<double>(x[at[0]]), static_cast<double>(g[at[1]]));
  });
  const auto* results = grad_weight.const_data_ptr<weight_t>();
  for (size_t c = 0; c < sums.size(); ++c) {
    if (!sums[c].allows(results[c])) {
      fail(
          problem, "grad_weight[" + std::to_string(c) + "] is " +
                       std::to_string(static_cast<double>(results[c])) + ", not " +
                       std::to_string(sums[c].value()));
    }
  }
}

// ---- Calls ------------------------------------------------------------------------------------

struct Results {
  at::Tensor output, grad_input, grad_weight;
};

Results by_functions(const Problem& problem) {
  Results results;
  const at::Tensor& input = problem.input.tensor;
  const at::Tensor& weight = problem.weight.tensor;
  const at::Tensor& grad_output = problem.grad_output.tensor;
  check_error(
      problem, error_of([&] { results.output = torch_ext::prelu(input, weight); }),
      expected_error(input, weight));
  check_error(
      problem, error_of([&] {
        std::tie(results.grad_input, results.grad_weight) =
            torch_ext::prelu_backward(grad_output, input, weight, problem.output_mask);
      }),
      expected_error(grad_output, input, weight));
  return results;
}

// For arguments that are right.
Results by_autograd(const Problem& problem) {
  const auto input = problem.input.tensor.detach().requires_grad_(problem.output_mask[0]);
  const auto weight = problem.weight.tensor.detach().requires_grad_(problem.output_mask[1]);
  const auto output = torch_ext::prelu(input, weight);
  Results results{output.detach(), {}, {}};
  torch::autograd::variable_list wanted;
  if (problem.output_mask[0]) {
    wanted.push_back(input);
  }
  if (problem.output_mask[1]) {
    wanted.push_back(weight);
  }
  if (!wanted.empty()) {
    const auto gradients = torch::autograd::grad({output}, wanted, {problem.grad_output.tensor});
    results.grad_input = problem.output_mask[0] ? gradients.front() : at::Tensor();
    results.grad_weight = problem.output_mask[1] ? gradients.back() : at::Tensor();
  }
  return results;
}

template <typename scalar_t, typename weight_t>
void check(const Problem& problem, const Results& results) {
  check_elements<scalar_t, weight_t>(problem, results.output, problem.input.tensor, "output");
  if (results.grad_input.defined()) {
    check_elements<scalar_t, weight_t>(
        problem, results.grad_input, problem.grad_output.tensor, "grad_input");
  }
  if (results.grad_weight.defined()) {
    check_sums<scalar_t, weight_t>(problem, results.grad_weight);
  }
}

void check(const Problem& problem, const Results& results) {
  const bool same_dtype = problem.input.tensor.scalar_type() == problem.weight.tensor.scalar_type();
  switch (problem.input.tensor.scalar_type()) {
    case at::kDouble:
      return check<double, double>(problem, results);
    case at::kFloat:
      return check<float, float>(problem, results);
    case at::kHalf:
      return same_dtype ? check<c10::Half, c10::Half>(problem, results)
                        : check<c10::Half, float>(problem, results);
    default:
      return same_dtype ? check<c10::BFloat16, c10::BFloat16>(problem, results)
                        : check<c10::BFloat16, float>(problem, results);
  }
}

void run(const Problem& problem) {
  const at::Tensor& input = problem.input.tensor;
  const at::Tensor& weight = problem.weight.tensor;
  const Results results = by_functions(problem);
  if (expected_error(problem.grad_output.tensor, input, weight).empty()) {
    if (results.grad_input.defined() != problem.output_mask[0] ||
        results.grad_weight.defined() != problem.output_mask[1]) {
      fail(problem, "output_mask was not followed");
    }
    check(problem, results);
    if (problem.by_autograd) {
      check(problem, by_autograd(problem));
    }
  }
  for (const Operand* operand : {&problem.input, &problem.weight, &problem.grad_output}) {
    if (!operand->untouched()) {
      fail(problem, "an argument was changed");
    }
  }
}

}  // namespace
}  // namespace torch_ext::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  using namespace torch_ext::fuzz;
  run(decode(bytes, size, kCanary == "bounds" ? 1 : 0));
  return 0;
}
