// What follows an operation's sums on the CUDA engine: a step that makes the params of the next
// operation of them, and values that all channels share. On the CPU as in cuda_engine_test.cpp.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda_oracle.h"
#include "operations.h"

namespace torch_ext::cuda {
namespace {

using namespace testing_operations;

template <typename T>
class Steps : public testing::Test {};
TYPED_TEST_SUITE(Steps, TestedTypes);

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
TYPED_TEST(Steps, StepBetweenTwo) {
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
TYPED_TEST(Steps, SharedValues) {
  using scalar_t = TypeParam;
  using Op = WithoutOutputs<NormPreluReduce>;
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
    run_finish(
        totals.data(), /*channels=*/1, /*splits=*/view.channels,
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
