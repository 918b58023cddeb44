// Several sweeps in one run of the CPU engine, as norm + PReLU needs them: a step for each channel
// turns the sums of one operation into params of the next. Channel by channel where the tensors of
// a channel fit a cache, else one sweep after another.
#include <gtest/gtest.h>

#include <random>

#include "cpu_problem.h"

namespace torch_ext::cpu_testing {
namespace {

using namespace testing_operations;

template <typename compute_t>
constexpr double kUnit = static_cast<double>(Bounded<compute_t>::kUnit);

double root(Exact value) {
  return std::sqrt(static_cast<double>(value));
}

template <typename scalar_t>
class CpuSweeps : public ::testing::Test {
 protected:
  using compute_t = compute_type<scalar_t>;
  using Values = std::vector<compute_t>;

  static ChannelInput<scalar_t> param(const Values& values, int64_t stride = 1) {
    return {values.data(), true, stride};
  }

  std::vector<scalar_t> elements(const ChannelView& view, double mean, double deviation) {
    std::vector<scalar_t> x(view.numel());
    std::normal_distribution<double> normal(mean, deviation);
    for (scalar_t& value : x) {
      value = to_scalar<scalar_t>(normal(random_));
    }
    return x;
  }

  Values values(int64_t channels, double low, double high) {
    Values result(channels);
    for (compute_t& value : result) {
      value = static_cast<compute_t>(std::uniform_real_distribution(low, high)(random_));
    }
    return result;
  }

  std::mt19937 random_{17};
};
TYPED_TEST_SUITE(CpuSweeps, DataTypes);

// How the sweeps are to run, and what shows it: a run channel by channel hands out work once.
struct Mode {
  ChannelView view;
  bool by_channels;
  Tuning tuning;
};

std::vector<Mode> modes() {
  Tuning small_tasks;
  small_tasks.sum_task_elements = small_tasks.task_elements = 1000;
  Tuning small_cache = small_tasks;
  small_cache.whole_channel_bytes = 100;
  return {
      {{6, 24, 151}, true, small_tasks},
      {{6, 24, 151}, false, small_cache},
      {{3, 16, 641}, true, kTuning},
      {{5, 3, 1001}, false, small_tasks},   // too few channels
      {{900, 20, 1}, false, small_tasks}};  // columns
}

// ---- Moments, then the output -------------------------------------------------------------------

template <typename scalar_t>
struct NormForward {
  using compute_t = compute_type<scalar_t>;
  using Values = std::vector<compute_t>;

  ChannelView view;
  std::vector<scalar_t> x;
  Values shift, weight, bias, slope;
  // Results.
  Values mean = Values(view.channels), scale = Values(view.channels);
  std::vector<scalar_t> y = std::vector<scalar_t>(view.numel());
  std::vector<std::array<double, 2>> totals = std::vector<std::array<double, 2>>(view.channels);

  void run(InstructionSet set, const Threads& threads, const Tuning& tuning) {
    const auto input = [](const Values& values) {
      return ChannelInput<scalar_t>{values.data(), true, 1};
    };
    const double count = view.outer * view.inner;
    const auto step = [&](int64_t c, const std::array<double, 2>& sums) {
      totals[c] = sums;
      const double from_shift = sums[0] / count;
      const double variance = sums[1] / count - from_shift * from_shift;
      mean[c] = static_cast<compute_t>(static_cast<double>(shift[c]) + from_shift);
      scale[c] = static_cast<compute_t>(static_cast<double>(weight[c]) / std::sqrt(variance));
    };
    const cpu::Operands<Moments, scalar_t> moments{{x.data()}, {}, {input(shift)}};
    cpu::run(
        view, {set, true, 2, tuning}, threads, cpu::Sweep(moments, step),
        cpu::Sweep(forward(), NoStep()));
  }

  cpu::Operands<NormPreluForward, scalar_t> forward() {
    const auto input = [](const Values& values) {
      return ChannelInput<scalar_t>{values.data(), true, 1};
    };
    return {{x.data()}, {y.data()}, {input(mean), input(scale), input(bias), input(slope)}};
  }

  // The statistics against exact sums; the output against its formula with the statistics that were
  // found.
  void expect_right() {
    const Exact count = view.outer * view.inner;
    const double u = kUnit<compute_t>;
    const double roundings = std::is_same_v<compute_t, double> ? 8 : 16;
    std::vector<Exact> sums(view.channels), squares(view.channels);
    for (int64_t i = 0; i < view.numel(); ++i) {
      sums[i / view.inner % view.channels] += to_double(x[i]);
    }
    for (int64_t i = 0; i < view.numel(); ++i) {
      const int64_t c = i / view.inner % view.channels;
      const Exact d = to_double(x[i]) - sums[c] / count;
      squares[c] += d * d;
    }
    for (int64_t c = 0; c < view.channels; ++c) {
      const Exact exact_mean = sums[c] / count;
      const double deviation = root(squares[c] / count);
      const double from_shift = std::fabs(static_cast<double>(exact_mean - Exact(shift[c])));
      const double spread = from_shift + deviation;  // of x - shift, which the sums are of
      EXPECT_LE(
          static_cast<double>(magnitude(mean[c] - exact_mean)),
          static_cast<double>(u * magnitude(exact_mean) + roundings * u * Exact(spread)))
          << c;
      const double exact_scale = static_cast<double>(weight[c]) / deviation;
      const double ratio = spread / deviation;
      EXPECT_NEAR(scale[c] / exact_scale, 1, (2 * roundings * ratio * ratio + 4) * u) << c;
    }
    const Oracle<NormPreluForward, scalar_t> oracle(view, forward(), false);
    oracle.expect_outputs({y.data()});
    EXPECT_LE(oracle.left_out() * 50, view.numel());
  }
};

TYPED_TEST(CpuSweeps, AStepTurnsMomentsIntoParamsOfTheOutput) {
  using scalar_t = TypeParam;
  for (const Mode& mode : modes()) {
    const ChannelView& view = mode.view;
    NormForward<scalar_t> norm{
        view,
        this->elements(view, 3, 2),
        this->values(view.channels, 2, 4),
        this->values(view.channels, 0.5, 2),
        this->values(view.channels, -1, 1),
        this->values(view.channels, -1, 1)};
    for (const InstructionSet set : cpu::supported_instruction_sets()) {
      SCOPED_TRACE(::testing::Message() << cpu::name_of(set) << ' ' << view.channels);
      const Threads one;
      norm.run(set, one, mode.tuning);
      EXPECT_EQ(one.calls(), mode.by_channels ? 1 : 3);
      norm.expect_right();
      const NormForward<scalar_t> before = norm;
      for (const int64_t piece : {0, 1, 3}) {
        std::fill(norm.y.begin(), norm.y.end(), to_scalar<scalar_t>(0));
        const Threads four(4, piece);
        norm.run(set, four, mode.tuning);
        EXPECT_GT(four.at_once(), 1);
        EXPECT_EQ(norm.totals, before.totals);
        EXPECT_EQ(norm.mean, before.mean);
        EXPECT_EQ(norm.scale, before.scale);
        EXPECT_TRUE(std::ranges::equal(norm.y, before.y, [](const auto& a, const auto& b) {
          return same_bits(to_double(a), to_double(b));
        }));
      }
    }
  }
}

// ---- Reduce, then apply -------------------------------------------------------------------------

// The gradient through the statistics, once all sums are known.
TYPED_TEST(CpuSweeps, AStepTurnsSumsOfTheGradientIntoParamsOfItsResult) {
  using scalar_t = TypeParam;
  using compute_t = compute_type<scalar_t>;
  using Values = std::vector<compute_t>;
  for (const Mode& mode : modes()) {
    const ChannelView& view = mode.view;
    // The first sweep's tensors and params, chosen so that rounding decides nothing.
    Problem<WithoutOutputs<NormPreluReduce>, scalar_t> problem(
        view, {.random = true, .wide_params = true}, this->random_);
    const auto reduce = problem.operands();
    const double count = view.outer * view.inner;
    Values offset(view.channels), factor(view.channels);
    std::vector<scalar_t> grad_input(view.numel());
    std::vector<std::array<double, 3>> totals(view.channels);
    const auto* const scale = static_cast<const compute_t*>(reduce.params[1].values);
    const auto step = [&](int64_t c, const std::array<double, 3>& sums_of_channel) {
      totals[c] = sums_of_channel;
      offset[c] = static_cast<compute_t>(-sums_of_channel[0] / count * to_double(scale[c]));
      factor[c] = static_cast<compute_t>(-sums_of_channel[1] / count * to_double(scale[c]));
    };
    const cpu::Operands<NormPreluApply, scalar_t> apply{
        reduce.inputs,
        {grad_input.data()},
        {reduce.params[0], reduce.params[1], reduce.params[2], reduce.params[3],
         this->param(offset), this->param(factor)}};
    const auto run = [&](InstructionSet set, const Threads& threads) {
      std::fill(grad_input.begin(), grad_input.end(), to_scalar<scalar_t>(0));
      cpu::run(
          view, {set, true, 3, mode.tuning}, threads, cpu::Sweep(reduce, step),
          cpu::Sweep(apply, NoStep()));
    };
    for (const InstructionSet set : cpu::supported_instruction_sets()) {
      SCOPED_TRACE(::testing::Message() << cpu::name_of(set) << ' ' << view.channels);
      const Threads one;
      run(set, one);
      EXPECT_EQ(one.calls(), mode.by_channels ? 1 : 3);
      problem.oracle().expect_sums(totals);
      Oracle<NormPreluApply, scalar_t>(view, apply, false).expect_outputs({grad_input.data()});
      const auto totals_before = totals;
      const auto grad_before = grad_input;
      for (const int64_t piece : {0, 1}) {
        run(set, Threads(4, piece));
        EXPECT_EQ(totals, totals_before);
        EXPECT_TRUE(std::ranges::equal(grad_input, grad_before, [](const auto& a, const auto& b) {
          return same_bits(to_double(a), to_double(b));
        }));
      }
    }
  }
  for (const int64_t nonzero : Oracle<WithoutOutputs<NormPreluReduce>, scalar_t>::nonzero_sums) {
    EXPECT_GT(nonzero, 0);
  }
}

// ---- One value for all channels -----------------------------------------------------------------

// Its gradient is the sum over the channels, in the order of their indices: the same bits whatever
// the number of threads.
TYPED_TEST(CpuSweeps, TheGradientOfOneSlopeForAllChannels) {
  using scalar_t = TypeParam;
  using Op = NormPreluReduce;
  for (const ChannelView& view : {ChannelView{6, 24, 151}, ChannelView{900, 20, 1}}) {
    Problem<Op, scalar_t> problem(
        view, {.random = true, .wide_params = true, .param_stride = 0}, this->random_);
    const Oracle<Op, scalar_t>& oracle = problem.oracle();
    Exact exact = 0, magnitudes = 0, bound = 0;
    for (int64_t c = 0; c < view.channels; ++c) {
      exact += oracle.sum(c, 2);
      bound += oracle.tolerance(c, 2);
      magnitudes += magnitude(oracle.sum(c, 2));
    }
    bound += view.channels * magnitudes * 0x1p-53;  // of the additions here
    ASSERT_GT(static_cast<double>(magnitude(exact)), static_cast<double>(100 * bound));
    const auto over_channels = [&] {
      double total = 0;
      for (const auto& totals : problem.totals()) {
        total += totals[2];
      }
      return total;
    };
    for (const InstructionSet set : cpu::supported_instruction_sets()) {
      problem.check(set, Threads());
      const double total = over_channels();
      EXPECT_LE(static_cast<double>(magnitude(total - exact)), static_cast<double>(bound));
      for (const int64_t piece : {0, 1, 2}) {
        problem.check(set, Threads(4, piece));
        EXPECT_TRUE(same_bits(over_channels(), total));
      }
    }
  }
}

}  // namespace
}  // namespace torch_ext::cpu_testing
