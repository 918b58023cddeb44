// That the CUDA engine runs any channelwise operation: those of operations.h, for which no line of
// it was written, on the CPU as in cuda_engine_test.cpp. Small integers, where every product and
// sum is exact, against each operation's formula in plain scalars; other values against the
// operation itself on one element at a time, and sums of its terms in 113 bits.
#include "cuda_problem.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "operations.h"

namespace torch_ext::cuda {
namespace {

using namespace testing_operations;

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
    const auto expected = Op::expected(
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

template <typename Check>
void for_each_operation(const Check& check) {
  check.template operator()<Everything>("Everything");
  check.template operator()<Moments>("Moments");
  check.template operator()<NormPreluForward>("NormPreluForward");
  check.template operator()<NormPreluReduce<true>>("NormPreluReduce<true>");
  check.template operator()<NormPreluReduce<false>>("NormPreluReduce<false>");
  check.template operator()<NormPreluApply>("NormPreluApply");
}

template <typename T>
class Operations : public testing::Test {};
using Types = testing::Types<double, float, c10::Half, c10::BFloat16>;
TYPED_TEST_SUITE(Operations, Types);

TYPED_TEST(Operations, AllPaths) {
  using scalar_t = TypeParam;
  const Case layouts[] = {
      {{2, 3, 512}},
      {{3, 2, 333}},
      {{1, 1, 3000}},
      {{97, 7, 1}},
      {{40, 64, 1}},
      {{5, 301, 1}},
      {{2, 1003, 1}},
      {{5, 6, 49}},
      {{17, 3, 4}},
      {{3, 5, 401}, {0, 0, 0}, 64, 2},
      {{1, 1, 5000}, {0, 0, 0}, 32, 0, 20, 4},
      {{65, 7, 1}, {0, 1, 0}, 64, 0, 50, 8},
      {{20, 700, 1}, {1, 0, 0}, 32, 2, 20, 2}};
  for_each_operation([&]<typename Op>(const char* name) {
    SCOPED_TRACE(name);
    Seen seen{};
    for (const Case& c : layouts) {
      check<Op, scalar_t>(c, Fill::kExact, seen);
      check<Op, scalar_t>(c, Fill::kRandom, seen);
      ASSERT_FALSE(this->HasFatalFailure());
    }
    for (const int count : {seen.planes, seen.columns, seen.segments, seen.merged}) {
      EXPECT_GT(count, 0);
    }
    EXPECT_TRUE(seen.passes > 0 || Op::kSums == 0);  // (few splits, as sums have)
    for (const int count : {seen.splits, seen.clusters, seen.unsplit}) {
      EXPECT_EQ(count > 0, Op::kSums > 0);
    }
    EXPECT_GT(seen.positive, 1000);
    EXPECT_EQ(seen.negative > 1000, !(std::is_same_v<Op, Moments>));  // it has no sides
  });
}

// Every size around one and two packs, and every misalignment. What is absent from a pack adds
// nothing, though the term of a zero would not be zero.
TYPED_TEST(Operations, TailsAndMisalignment) {
  using scalar_t = TypeParam;
  constexpr int kPack = Pack<scalar_t>::kSize;
  for_each_operation([&]<typename Op>(const char* name) {
    SCOPED_TRACE(name);
    Seen seen{};
    for (int size = 1; size <= 2 * kPack + 1; ++size) {
      const Offsets offsets{size % kPack, size / 2 % kPack, size * 3 % kPack};
      check<Op, scalar_t>({{2, 2, size}, offsets}, Fill::kExact, seen);
      check<Op, scalar_t>({{5, size, 1}}, Fill::kExact, seen);
      check<Op, scalar_t>({{1, 1, 32 * kPack + size}, offsets}, Fill::kExact, seen);
      check<Op, scalar_t>({{1, 2, 32 * kPack * 5 + size}, offsets}, Fill::kExact, seen);
      ASSERT_FALSE(this->HasFatalFailure());
    }
    EXPECT_GT(seen.planes, 2);
    EXPECT_GT(seen.columns, 2);
    EXPECT_EQ(seen.shifted > 2, Op::kInputs + Op::kOutputs > 1);
  });
}

// What `where` leaves out of a sum has no effect on it, infinite or not a number.
TYPED_TEST(Operations, SpecialValues) {
  using scalar_t = TypeParam;
  const std::array values{0.0, -0.0, kInf, -kInf, kNaN, 1.0, -1.0, 2.0, -0.75};
  const int64_t count = values.size();
  int finite = 0, infinite = 0, nan = 0;
  Seen seen{};
  for (const ChannelView view : {ChannelView{300, 81, 1}, {1, 81, 700}}) {
    Problem<scalar_t> problem({view}, Fill::kExact, Everything::kParams, [&](int i) {
      return Param<scalar_t>(view.channels, i % 2 == 0, 1);
    });
    // A pair of values in a channel, once.
    for (int64_t channel = 0; channel < view.channels; ++channel) {
      const int64_t position =
          (view.outer / 2 * view.channels + channel) * view.inner + view.inner / 2;
      problem.inputs[0].data()[position] = cast<scalar_t>(values[channel / count]);
      problem.inputs[1].data()[position] = cast<scalar_t>(values[channel % count]);
    }
    const auto results = results_of<Everything>(problem, seen);
    check_any<Everything>(problem, results, seen);
    ASSERT_FALSE(this->HasFatalFailure());
    for (const auto& totals : results.totals) {
      for (const double total : totals) {
        ++(std::isnan(total) ? nan : std::isinf(total) ? infinite : finite);
      }
    }
  }
  EXPECT_GT(finite, 200);
  EXPECT_GT(infinite, 20);
  EXPECT_GT(nan, 20);
  EXPECT_GT(seen.planes, 0);
  EXPECT_GT(seen.columns, 0);
}

// ---- Steps -------------------------------------------------------------------------------------

// A step that makes params of sums: the mean, and one divided by the deviation.
template <typename compute_t>
struct MeanAndScale {
  static constexpr int kSums = 2;
  static constexpr double kEps = 1e-5;

  int64_t count;
  const compute_t* shift;
  compute_t* mean;
  compute_t* scale;

  void operator()(int64_t channel, const std::array<double, 2>& sums) const {
    const double n = static_cast<double>(count);
    const double d = sums[0] / n;
    mean[channel] = static_cast<compute_t>(shift[channel] + d);
    scale[channel] = static_cast<compute_t>(1 / std::sqrt(sums[1] / n - d * d + kEps));
  }
};

// Statistics within their bounds: 16 units (8) of what is added, and the rounding of the results.
template <typename scalar_t>
void check_statistics(
    const Problem<scalar_t>& problem, const MeanAndScale<compute_type<scalar_t>>& step) {
  const double u = std::is_same_v<scalar_t, double> ? 0x1p-53 : 0x1p-24;
  const double units = (std::is_same_v<scalar_t, double> ? 8 : 16) * u;
  for (int64_t channel = 0; channel < problem.c.view.channels; ++channel) {
    __float128 sum = 0, squares = 0, size = 0;
    for (int64_t i = 0; i < problem.x().size(); ++i) {
      if (problem.channel(i) == channel) {
        const __float128 d = static_cast<__float128>(static_cast<double>(problem.x().data()[i])) -
                             step.shift[channel];
        sum += d;
        squares += d * d;
        size += d < 0 ? -d : d;
      }
    }
    const double n = static_cast<double>(step.count);
    const double d = static_cast<double>(sum / n);
    const double mean = d + step.shift[channel];
    const double variance = static_cast<double>(squares / n - (sum / n) * (sum / n));
    // d itself is rounded before it is added, once.
    const double mean_error = (units + u) * static_cast<double>(size) / n;
    const double variance_error =
        (units + 2 * u) * static_cast<double>(squares) / n + 2 * std::abs(d) * mean_error;
    const double scale = 1 / std::sqrt(variance + step.kEps);
    ASSERT_LE(std::abs(step.mean[channel] - mean), mean_error + 2 * u * std::abs(mean));
    ASSERT_LE(std::abs(step.scale[channel] - scale), scale * (variance_error / variance + 2 * u));
  }
}

// Two operations, where a step makes the params of the second one from the sums of the first.
TYPED_TEST(Operations, StepBetweenTwo) {
  using scalar_t = TypeParam;
  using compute_t = compute_type<scalar_t>;
  Seen seen{};
  const Case cases[] = {
      {{7, 5, 301}},
      {{401, 24, 1}},
      {{2, 6, 49}, {0, 1, 0}, 64, 0, 1 << 20},
      {{3, 2, 777}, {1, 0, 0}, 32, 0, 20, 2}};
  for (const Case& c : cases) {
    SCOPED_TRACE(c.text());
    // mean, scale, bias, slope
    Problem<scalar_t> problem(c, Fill::kRandom, NormPreluForward::kParams, [&](int i) {
      return Param<scalar_t>(c.view.channels, i < 2, i == 3 ? 0 : 1);
    });
    // Shifts near the data: each channel's first element.
    for (int64_t channel = 0; channel < c.view.channels; ++channel) {
      const auto first = problem.x().data()[channel * c.view.inner];
      problem.params[0].set(channel, static_cast<double>(first));
    }
    std::vector<compute_t> mean(c.view.channels), scale(c.view.channels);
    const MeanAndScale<compute_t> step{
        c.view.outer * c.view.inner, problem.params[0].wide.data(), mean.data(), scale.data()};
    run<Moments>(problem, nullptr, seen, step);
    check_statistics(problem, step);
    for (int64_t channel = 0; channel < c.view.channels; ++channel) {
      problem.params[0].set(channel, mean[channel]);
      problem.params[1].set(channel, scale[channel]);
    }
    const auto results = results_of<NormPreluForward>(problem, seen);
    check_any<NormPreluForward>(problem, results, seen);
    ASSERT_FALSE(this->HasFatalFailure());
  }
  EXPECT_GT(seen.planes, 0);
  EXPECT_GT(seen.columns, 0);
  EXPECT_GT(seen.splits, 0);
  EXPECT_GT(seen.clusters, 0);
  EXPECT_GT(seen.unsplit, 0);
  EXPECT_GT(seen.positive, 1000);
  EXPECT_GT(seen.negative, 1000);
}

// A value that all channels share: its sums are those of the channels, added by the finishing
// kernel. One that is not wanted is not written.
TYPED_TEST(Operations, SharedValues) {
  using scalar_t = TypeParam;
  using Op = NormPreluReduce<false>;
  Seen seen{};
  for (const ChannelView view : {ChannelView{9, 3, 150}, {5, 700, 1}, {3, 5003, 1}}) {
    Problem<scalar_t> problem({view}, Fill::kExact, Op::kParams, [&](int i) {
      return Param<scalar_t>(view.channels, i % 2 == 0, 0);
    });
    for (const auto& [param, value] : {std::pair{0, 0.0}, {1, 1.0}, {2, -1.0}, {3, 2.0}}) {
      problem.params[param].set(0, value);  // z = x - 1, both signs
    }
    const auto results = results_of<Op>(problem, seen);
    check_exact<Op>(problem, results);
    std::array<double, Op::kSums> expected{};
    for (const auto& totals : results.totals) {
      for (int sum = 0; sum < Op::kSums; ++sum) {
        expected[sum] += totals[sum];
      }
    }
    Storage<double> totals(Op::kSums * view.channels, 0);
    StoreSums<double, Op::kSums> keep{};
    for (int sum = 0; sum < Op::kSums; ++sum) {
      keep.outputs[sum] = {totals.data() + sum * view.channels, true};
    }
    run<Op>(problem, nullptr, seen, keep);
    Param<scalar_t> first(1, true, 1), last(1, true, 1);
    run_shared(
        totals.data(), view.channels,
        StoreSums<scalar_t, 3>{{{first.output(), {nullptr, true}, last.output()}}},
        EmulatedLaunch{});
    EXPECT_EQ(first[0], expected[0]);
    EXPECT_EQ(last[0], expected[2]);
    EXPECT_NE(expected[0], 0);
    EXPECT_NE(expected[2], 0);
  }
  EXPECT_GT(seen.planes, 0);
  EXPECT_GT(seen.columns, 0);
}

}  // namespace
}  // namespace torch_ext::cuda
