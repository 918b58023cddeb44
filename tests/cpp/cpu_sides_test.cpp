// The side of the PReLU behind a norm, in all operations that choose one.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>

#include "cpu_problem.h"

namespace torch_ext::cpu_testing {
namespace {

using namespace testing_operations;

template <typename scalar_t>
std::vector<scalar_t> elements(const ChannelView& view, std::mt19937& random) {
  std::vector<scalar_t> x(view.numel());
  std::normal_distribution<double> normal(3, 2);
  for (scalar_t& value : x) {
    value = to_scalar<scalar_t>(normal(random));
  }
  return x;
}

template <typename compute_t>
std::vector<compute_t> values(int64_t channels, double low, double high, std::mt19937& random) {
  std::vector<compute_t> result(channels);
  for (compute_t& value : result) {
    value = static_cast<compute_t>(std::uniform_real_distribution(low, high)(random));
  }
  return result;
}

template <typename scalar_t>
class CpuSides : public ::testing::Test {};
TYPED_TEST_SUITE(CpuSides, DataTypes);

// Forward and both backwards compute z by the same operations, so that every element is on one side
// in all of them, also where z is nothing but a rounding error.
TYPED_TEST(CpuSides, AllSweepsOfNormAndPreluTakeTheSameSide) {
  using scalar_t = TypeParam;
  using compute_t = compute_type<scalar_t>;
  std::mt19937 random(19);
  const auto inf = std::numeric_limits<compute_t>::infinity();
  for (const ChannelView& view : {ChannelView{3, 40, 135}, ChannelView{150, 41, 1}}) {
    auto x = elements<scalar_t>(view, random);
    const auto mean = values<compute_t>(view.channels, 2, 4, random);
    const auto scale = values<compute_t>(view.channels, 0.5, 2, random);
    std::vector<compute_t> bias(view.channels);
    // Most of a channel is one value, for which z is zero but for the rounding.
    for (int64_t c = 0; c < view.channels; ++c) {
      const scalar_t value = x[c * view.inner];
      bias[c] = -(static_cast<compute_t>(value) - mean[c]) * scale[c];
      if (c % 4 == 3) {
        bias[c] = std::nextafter(bias[c], inf);
      }
      for (int64_t i = 0; i < view.numel(); ++i) {
        if (i / view.inner % view.channels == c && i % 5 != 0) {
          x[i] = value;
        }
      }
    }
    // Slope -inf makes an infinity or NaN of what is not positive; slope 0 with a gradient of 1
    // makes gz the indicator of the positive side.
    const std::vector<scalar_t> g(view.numel(), to_scalar<scalar_t>(1));
    const std::vector<compute_t> infinite(view.channels, -inf), zero(view.channels, 0);
    std::vector<scalar_t> y(view.numel()), eval(view.numel()), applied(view.numel());
    std::vector<double> positive(view.channels), positive_in_eval(view.channels);
    const auto param = [](const std::vector<compute_t>& values) {
      return ChannelInput<scalar_t>{values.data(), true, 1};
    };
    const cpu::Operands<NormPreluForward, scalar_t> forward{
        {x.data()}, {y.data()}, {param(mean), param(scale), param(bias), param(infinite)}};
    const std::array<const scalar_t*, 2> inputs{g.data(), x.data()};
    const cpu::Operands<WithoutOutputs<NormPreluReduce>, scalar_t> reduce{
        inputs, {}, {param(mean), param(scale), param(bias), param(zero)}};
    const cpu::Operands<NormPreluReduce, scalar_t> reduce_eval{
        inputs, {eval.data()}, reduce.params};
    const cpu::Operands<NormPreluApply, scalar_t> apply{
        inputs,
        {applied.data()},
        {param(mean), param(scale), param(bias), param(zero), param(zero), param(zero)}};
    const auto count_into = [](std::vector<double>& counts) {
      return [&counts](int64_t c, const std::array<double, 3>& totals) { counts[c] = totals[0]; };
    };
    for (const InstructionSet set : cpu::supported_instruction_sets()) {
      SCOPED_TRACE(::testing::Message() << cpu::name_of(set) << ' ' << view.channels);
      const cpu::RunOptions options{set};
      const Threads threads;
      cpu::run(view, options, threads, cpu::Sweep(forward, NoStep()));
      cpu::run(view, options, threads, cpu::Sweep(reduce, count_into(positive)));
      cpu::run(view, options, threads, cpu::Sweep(reduce_eval, count_into(positive_in_eval)));
      cpu::run(view, options, threads, cpu::Sweep(apply, NoStep()));
      std::vector<double> expected(view.channels);
      int64_t near_zero = 0;
      for (int64_t i = 0; i < view.numel(); ++i) {
        const int64_t c = i / view.inner % view.channels;
        const bool is_positive = std::isfinite(to_double(y[i]));
        expected[c] += is_positive;
        near_zero += is_positive && to_double(y[i]) < 1e-4;
        ASSERT_EQ(to_double(eval[i]) > 0, is_positive) << i;
        ASSERT_EQ(to_double(applied[i]) > 0, is_positive) << i;
      }
      EXPECT_EQ(positive, expected);
      EXPECT_EQ(positive_in_eval, expected);
      const double share = std::accumulate(expected.begin(), expected.end(), 0.0) / view.numel();
      EXPECT_GT(share, 0.1);
      EXPECT_LT(share, 0.9);
      EXPECT_GT(near_zero, view.numel() / 20);
    }
  }
}

}  // namespace
}  // namespace torch_ext::cpu_testing
