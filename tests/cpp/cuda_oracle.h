// Any channelwise operation on the emulated CUDA engine, and two oracles for it. Small integers,
// where every product and sum is exact, are judged by the operation's formula in plain scalars;
// other values by the operation itself on one element at a time, and by sums of its terms in 113
// bits.
#pragma once

#include "cuda_problem.h"
#include "operations.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace torch_ext::cuda {

// Keeps the sums, and counts how often it was taken for each channel.
template <int kCount>
struct RecordSums {
  static constexpr int kSums = kCount;

  std::array<double, kSums>* totals;
  int* taken;

  void operator()(int64_t channel, const std::array<double, kSums>& sums) const {
    totals[channel] = sums;
    ++taken[channel];
  }
};

// An operation's `sums` for the oracle: what is added, exactly.
template <typename T>
struct ExactTerms {
  struct Sum {
    ExactSum& sum;
    Seen& seen;

    void add(T term, bool where = true) const { add_product(term, T(1), where); }
    void add_product(T a, T b, bool where = true) const {
      if (where) {
        sum.add(a, b);
      }
      ++(where ? seen.positive : seen.negative);
    }
  };

  ExactSum* sums;
  Seen& seen;

  Sum operator[](int i) const { return {sums[i], seen}; }
};

// Params of both types and of both strides.
template <typename scalar_t>
Param<scalar_t> any_param(const Case& c, int i) {
  return Param<scalar_t>(c.view.channels, i % 2 == 0, i % 3 == 2 ? 0 : 1);
}

template <typename Op, typename scalar_t>
struct Results {
  explicit Results(const Case& c)
      : output(c.view.numel(), c.offsets.output), totals(c.view.channels), taken(c.view.channels) {}

  Storage<scalar_t> output;
  std::vector<std::array<double, Op::kSums>> totals;
  std::vector<int> taken;
};

template <typename Op, typename scalar_t>
Results<Op, scalar_t> results_of(const Problem<scalar_t>& problem, Seen& seen) {
  Results<Op, scalar_t> results(problem.c);
  if constexpr (Op::kSums > 0) {
    const RecordSums<Op::kSums> step{results.totals.data(), results.taken.data()};
    run<Op>(problem, &results.output, seen, step);
    for (const int taken : results.taken) {
      EXPECT_EQ(taken, 1);
    }
  } else {
    run<Op>(problem, &results.output, seen);
  }
  EXPECT_TRUE(results.output.untouched_in_front());
  return results;
}

// By the formula in plain scalars, in 113 bits: for small integers, which no operation rounds.
template <typename Op, typename scalar_t>
void check_exact(const Problem<scalar_t>& problem, const Results<Op, scalar_t>& results) {
  std::vector<std::array<__float128, Op::kSums>> sums(problem.c.view.channels);
  for (int64_t i = 0; i < problem.x().size(); ++i) {
    const auto wide = [](const auto& values) {
      std::array<__float128, std::tuple_size_v<std::decay_t<decltype(values)>>> wide;
      std::ranges::copy(values, wide.begin());
      return wide;
    };
    const auto expected = testing_operations::expected_of<Op>(
        wide(problem.template values_at<Op>(i)), wide(problem.template params_at<Op>(i)));
    for (const __float128 output : expected.outputs) {
      ASSERT_EQ(static_cast<double>(results.output.data()[i]), static_cast<double>(output))
          << "at " << i;
    }
    for (int sum = 0; sum < Op::kSums; ++sum) {
      sums[problem.channel(i)][sum] += expected.terms[sum];
    }
  }
  for (int64_t channel = 0; channel < problem.c.view.channels; ++channel) {
    for (int sum = 0; sum < Op::kSums; ++sum) {
      ASSERT_EQ(results.totals[channel][sum], static_cast<double>(sums[channel][sum]))
          << "sum " << sum << " of channel " << channel;
    }
  }
}

// By the operation itself: outputs to the bit, sums within the contract's bound.
template <typename Op, typename scalar_t>
void check_any(const Problem<scalar_t>& problem, const Results<Op, scalar_t>& results, Seen& seen) {
  using compute_t = compute_type<scalar_t>;
  std::vector<std::array<ExactSum, Op::kSums>> sums(problem.c.view.channels);
  for (int64_t i = 0; i < problem.x().size(); ++i) {
    ExactTerms<compute_t> terms{sums[problem.channel(i)].data(), seen};
    const auto outputs =
        Op::apply(problem.template values_at<Op>(i), problem.template params_at<Op>(i), terms);
    for (const compute_t output : outputs) {
      ASSERT_TRUE(same(results.output.data()[i], static_cast<scalar_t>(output)))
          << static_cast<double>(results.output.data()[i]) << " at " << i;
      ++(output > 0 ? seen.positive : seen.negative);
    }
  }
  for (int64_t channel = 0; channel < problem.c.view.channels; ++channel) {
    for (int sum = 0; sum < Op::kSums; ++sum) {
      SCOPED_TRACE(testing::Message() << "sum " << sum << " of channel " << channel);
      check_sum<compute_t>(results.totals[channel][sum], sums[channel][sum], 0);
    }
  }
}

template <typename Op, typename scalar_t>
void check(const Case& c, Fill fill, Seen& seen) {
  SCOPED_TRACE(c.text());
  const Problem<scalar_t> problem(
      c, fill, Op::kParams, [&](int i) { return any_param<scalar_t>(c, i); });
  const auto results = results_of<Op>(problem, seen);
  check_any<Op>(problem, results, seen);
  if (fill == Fill::kExact) {
    check_exact<Op>(problem, results);
  }
}

}  // namespace torch_ext::cuda
