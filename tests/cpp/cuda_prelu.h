// PReLU on the emulated CUDA engine, and an oracle for it that shares no code with the kernels.
#pragma once

#include "cuda_problem.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "kernels/prelu.h"

namespace torch_ext::cuda {

struct Outputs {
  bool grad_input;
  bool grad_weight;
};

// The types that slopes of this data may have: whether each is the compute type.
template <typename scalar_t>
std::vector<bool> slope_types() {
  return sizeof(scalar_t) == 2 ? std::vector{false, true} : std::vector{true};
}

template <typename scalar_t>
Problem<scalar_t> prelu_problem(const Case& c, Fill fill, bool is_compute_type) {
  return {c, fill, 1, [&](int) { return Param<scalar_t>(c.view.channels, is_compute_type, 1); }};
}

// One product, rounded to the compute type, then to storage.
template <typename scalar_t>
scalar_t expected(scalar_t x, scalar_t value, double slope) {
  return static_cast<double>(x) > 0 ? value : cast<scalar_t>(slope * static_cast<double>(value));
}

template <typename scalar_t>
void check_elements(
    const Problem<scalar_t>& problem,
    const Storage<scalar_t>& result,
    const Storage<scalar_t>& values,
    const char* what,
    Seen& seen) {
  for (int64_t i = 0; i < result.size(); ++i) {
    const scalar_t x = problem.x().data()[i];
    const double slope = problem.params[0][problem.channel(i)];
    ASSERT_TRUE(same(result.data()[i], expected(x, values.data()[i], slope)))
        << what << " at " << i << ": " << static_cast<double>(result.data()[i]) << " for x "
        << static_cast<double>(x) << ", slope " << slope;
    ++(static_cast<double>(x) > 0 ? seen.positive : seen.negative);
  }
  ASSERT_TRUE(result.untouched_in_front()) << what;
}

template <typename scalar_t>
void check_sums(const Problem<scalar_t>& problem, const Param<scalar_t>& result, bool exact) {
  using compute_t = compute_type<scalar_t>;
  std::vector<ExactSum> sums(problem.c.view.channels);
  for (int64_t i = 0; i < problem.x().size(); ++i) {
    const double x = static_cast<double>(problem.x().data()[i]);
    if (!(x > 0)) {
      sums[problem.channel(i)].add(x, static_cast<double>(problem.g().data()[i]));
    }
  }
  const bool narrow = !result.is_compute_type;
  const double last = std::is_same_v<scalar_t, double>      ? 0x1p-53
                      : !narrow                             ? 0x1p-24
                      : std::is_same_v<scalar_t, c10::Half> ? 0x1p-11
                                                            : 0x1p-8;
  for (int64_t c = 0; c < problem.c.view.channels; ++c) {
    SCOPED_TRACE(c);
    const double got = result[c];
    check_sum<compute_t>(got, sums[c], last);
    if (exact && std::isfinite(sums[c].ieee)) {
      const auto rounded = static_cast<compute_t>(sums[c].value);
      ASSERT_EQ(got, narrow ? static_cast<double>(static_cast<scalar_t>(rounded)) : rounded);
    }
  }
}

template <typename scalar_t>
void check_backward(const Problem<scalar_t>& problem, Outputs wanted, bool exact, Seen& seen) {
  Storage<scalar_t> grad_input(problem.x().size(), problem.c.offsets.output);
  Param<scalar_t> grad_weight(problem.c.view.channels, problem.params[0].is_compute_type, 1);
  Storage<scalar_t>* target = wanted.grad_input ? &grad_input : nullptr;
  if (wanted.grad_weight) {
    run<PreluBackward>(problem, target, seen, StoreSums<scalar_t, 1>{{{grad_weight.output()}}});
    check_sums(problem, grad_weight, exact);
  } else {
    run<WithoutSums<PreluBackward>>(problem, target, seen);
  }
  if (wanted.grad_input) {
    check_elements(problem, grad_input, problem.g(), "grad_input", seen);
  }
}

template <typename scalar_t>
void check_forward(const Problem<scalar_t>& problem, Seen& seen) {
  Storage<scalar_t> output(problem.x().size(), problem.c.offsets.output);
  run<PreluForward>(problem, &output, seen);
  check_elements(problem, output, problem.x(), "output", seen);
}

template <typename scalar_t>
void check_all(const Case& c, Fill fill, Seen& seen) {
  SCOPED_TRACE(c.text());
  for (const bool is_compute_type : slope_types<scalar_t>()) {
    SCOPED_TRACE(is_compute_type);
    const auto problem = prelu_problem<scalar_t>(c, fill, is_compute_type);
    check_forward(problem, seen);
    check_backward(problem, {true, true}, fill == Fill::kExact, seen);
  }
}

}  // namespace torch_ext::cuda
