// The CPU engine on plain memory with PReLU, for every instruction set that this machine has: all
// lengths around the vector's, all misalignments, guard elements around each result, tasks in any
// order and at once, values that are not finite, rounding.
#include <gtest/gtest.h>

#include <random>

#include "cpu_problem.h"

namespace torch_ext::cpu_testing {
namespace {

template <typename scalar, bool wide>
struct Types {
  using scalar_t = scalar;
  static constexpr bool kWideParams = wide;  // in the compute type
  using param_t = std::conditional_t<wide, compute_type<scalar>, scalar>;
};
using AllTypes = ::testing::Types<
    Types<double, false>,
    Types<float, false>,
    Types<c10::Half, false>,
    Types<c10::Half, true>,
    Types<c10::BFloat16, false>,
    Types<c10::BFloat16, true>>;

template <typename Pair>
class CpuEngine : public ::testing::Test {
 protected:
  using scalar_t = typename Pair::scalar_t;
  using param_t = typename Pair::param_t;
  using compute_t = compute_type<scalar_t>;
  using Forward = Problem<PreluForward, scalar_t>;
  using Backward = Problem<PreluBackward, scalar_t>;
  using OutputOnly = Problem<WithoutSums<PreluBackward>, scalar_t>;

  Options options(int64_t offset) const {
    return {.offset = offset, .wide_params = Pair::kWideParams};
  }

  void check(const ChannelView& view, int64_t offset, const Tuning& tuning = kTuning) {
    Forward(view, options(offset), random_).check_all(tuning);
    Backward(view, options(offset), random_).check_all(tuning);
  }

  std::mt19937 random_{11};
};
TYPED_TEST_SUITE(CpuEngine, AllTypes);

TYPED_TEST(CpuEngine, WalksEveryLengthOfOneRun) {
  for (int64_t inner = 1; inner <= 140; ++inner) {
    this->check({1, 1, inner}, inner % 16);
    this->check({2, 3, inner + 60}, inner % 16);
  }
}

TYPED_TEST(CpuEngine, WalksEveryNumberOfColumns) {
  for (int64_t channels = 1; channels <= 70; ++channels) {
    this->check({1, channels, 1}, channels % 16);
    this->check({37, channels, 1}, channels % 16);
    this->check({5, channels, 1 + channels % 7}, channels % 16);
  }
}

TYPED_TEST(CpuEngine, TakesEveryMisalignment) {
  for (int64_t offset = 0; offset < 16; ++offset) {
    this->check({3, 5, 131}, offset);
    this->check({19, 21, 3}, offset);
  }
}

TYPED_TEST(CpuEngine, WritesWholeLinesPastTheCaches) {
  Tuning tuning;
  tuning.bypass_bytes = 1;
  int bypassed = 0;
  for (const ChannelView& view :
       {ChannelView{1, 1, 5000}, ChannelView{3, 4, 4096}, ChannelView{70, 64, 1},
        ChannelView{40, 3, 32}, ChannelView{3, 5000, 1}}) {
    typename TestFixture::Forward forward(view, this->options(0), this->random_);
    typename TestFixture::Backward backward(view, this->options(0), this->random_);
    bypassed += forward.bypasses_caches(tuning) && backward.bypasses_caches(tuning);
    forward.check_all(tuning);
    backward.check_all(tuning);
    this->check(view, 1, tuning);  // no whole lines
  }
  EXPECT_GE(bypassed, 4);
}

// Past the caches, for all instruction sets: a pack that lies in two runs, whatever the length of
// the runs is; a run that begins in the middle of a pack; and prefetches that end after the tensor.
TYPED_TEST(CpuEngine, SharesThePacksOfNeighbouringRuns) {
  Tuning tuning;
  tuning.bypass_bytes = 1;
  tuning.min_plane = tuning.min_plane_16_bit = 1;
  tuning.sum_task_elements = tuning.task_elements = 300;
  for (int64_t inner = 1; inner <= 140; ++inner) {
    const ChannelView view{2, 5, inner};
    ASSERT_TRUE((typename TestFixture::Backward(view, this->options(0), this->random_)
                     .bypasses_caches(tuning)));
    this->check(view, 0, tuning);
  }
  this->check({2, 3, 1000}, 0, tuning);
  this->check({2, 3, 1003}, 0, tuning);
}

TYPED_TEST(CpuEngine, LeavesOutWhatIsNotWanted) {
  for (const ChannelView& view : {ChannelView{3, 5, 131}, ChannelView{19, 21, 3}}) {
    Options options = this->options(1);
    typename TestFixture::OutputOnly(view, options, this->random_).check_all();
    options.wants_outputs = false;
    typename TestFixture::Backward(view, options, this->random_).check_all();
  }
}

TYPED_TEST(CpuEngine, OneSlopeServesAllChannels) {
  for (const ChannelView& view : {ChannelView{3, 5, 131}, ChannelView{19, 21, 3}}) {
    Options options = this->options(1);
    options.param_stride = 0;
    typename TestFixture::Backward(view, options, this->random_).check_all();
  }
}

TYPED_TEST(CpuEngine, CombinesTheTasksOfLargeTensors) {
  this->check({3, 2, 20011}, 1);
  this->check({1, 1, 100003}, 0);
  this->check({30011, 3, 1}, 2);
  this->check({70, 1030, 1}, 3);
  this->check({40, 90, 25}, 0);
}

// For the thread sanitizer: no task writes where another one reads or writes, vectors that reach
// back included.
TYPED_TEST(CpuEngine, TasksMayRunAtOnce) {
  Tuning small_tasks;
  small_tasks.sum_task_elements = small_tasks.task_elements = 3000;
  for (const ChannelView& view :
       {ChannelView{1, 1, 30003}, ChannelView{3, 2, 5011}, ChannelView{10011, 3, 1},
        ChannelView{70, 303, 1}, ChannelView{40, 30, 25}, ChannelView{60, 101, 7}}) {
    typename TestFixture::Forward forward(view, this->options(1), this->random_);
    typename TestFixture::Backward backward(view, this->options(1), this->random_);
    for (const InstructionSet set : cpu::supported_instruction_sets()) {
      const Threads of_forward(4, 1), of_backward(4, 1);
      forward.check(set, of_forward, small_tasks);
      backward.check(set, of_backward, small_tasks);
      EXPECT_EQ(of_forward.at_once(), 4) << view.outer << " x " << view.channels;
      EXPECT_EQ(of_backward.at_once(), 4) << view.outer << " x " << view.channels;
    }
  }
}

// What most sums end with: they are rounded to the compute type, and once more to 16 bits.
TYPED_TEST(CpuEngine, StoresSumsInTheTypeOfTheirTensor) {
  using scalar_t = typename TypeParam::scalar_t;
  using param_t = typename TypeParam::param_t;
  for (const ChannelView& view : {ChannelView{3, 5, 1310}, ChannelView{1900, 5, 3}}) {
    typename TestFixture::Backward problem(view, this->options(3), this->random_);
    for (const InstructionSet set : cpu::supported_instruction_sets()) {
      problem.check(set, Threads());
      Guarded<param_t> grad_weight(view.channels, 3);
      const StoreSums<scalar_t, 1> step{{{{grad_weight.data(), TypeParam::kWideParams}}}};
      cpu::run(view, {set}, Threads(), cpu::Sweep(problem.operands(), step));
      for (int64_t c = 0; c < view.channels; ++c) {
        const auto rounded = static_cast<compute_type<scalar_t>>(problem.totals()[c][0]);
        EXPECT_EQ(to_double(grad_weight[c]), to_double(static_cast<param_t>(rounded))) << c;
        EXPECT_NE(to_double(grad_weight[c]), 0) << c;
      }
      EXPECT_TRUE(grad_weight.guards_intact());
    }
  }
}

// Elements of one value each, by the engine.
template <typename Op, typename scalar_t, typename param_t>
struct Uniform {
  ChannelView view;
  std::array<std::vector<scalar_t>, Op::kInputs> inputs;
  std::vector<scalar_t> output;
  std::vector<param_t> slopes;
  std::vector<double> sums;

  Uniform(const ChannelView& view, const std::array<scalar_t, Op::kInputs>& values, param_t slope)
      : view(view), output(view.numel()), slopes(view.channels, slope), sums(view.channels) {
    for (int i = 0; i < Op::kInputs; ++i) {
      inputs[i].assign(view.numel(), values[i]);
    }
  }

  void run(InstructionSet set, const Tuning& tuning = kTuning) {
    const bool is_compute_type = std::is_same_v<param_t, compute_type<scalar_t>>;
    cpu::Operands<Op, scalar_t> operands{
        {}, {output.data()}, {{{slopes.data(), is_compute_type, 1}}}};
    for (int i = 0; i < Op::kInputs; ++i) {
      operands.inputs[i] = inputs[i].data();
    }
    const auto step = [&](int64_t channel, const std::array<double, Op::kSums>& totals) {
      if constexpr (Op::kSums > 0) {
        sums[channel] = totals[0];
      }
    };
    cpu::run(view, {set, true, 0, tuning}, Threads(), cpu::Sweep(operands, step));
  }
};

// A NaN has 2^24 - 2 bit patterns, and rounding to 16 bits must not make a number of any.
TYPED_TEST(CpuEngine, KeepsEveryKindOfNaN) {
  using scalar_t = typename TypeParam::scalar_t;
  using param_t = typename TypeParam::param_t;
  const auto is_nan = [](const scalar_t& value) { return std::isnan(to_double(value)); };
  for (const uint32_t bits :
       {0x7FC00000u, 0xFFC00000u, 0x7F800001u, 0xFF800001u, 0x7FFFFFFFu, 0xFFFFFFFFu, 0x7FBFFFFFu,
        0x7F80FFFFu}) {
    const auto nan = std::bit_cast<float>(bits);
    const auto element = static_cast<scalar_t>(nan);
    const auto minus_one = static_cast<scalar_t>(-1.0f);
    const auto slope = static_cast<param_t>(nan);
    const auto quarter = static_cast<param_t>(0.25f);
    for (const InstructionSet set : cpu::supported_instruction_sets()) {
      for (const ChannelView& view : {ChannelView{1, 1, 100}, ChannelView{1, 100, 1}}) {
        SCOPED_TRACE(cpu::name_of(set));
        Uniform<PreluForward, scalar_t, param_t> of_input(view, {element}, quarter);
        of_input.run(set);
        EXPECT_TRUE(std::ranges::all_of(of_input.output, is_nan));
        Uniform<PreluForward, scalar_t, param_t> of_slope(view, {minus_one}, slope);
        of_slope.run(set);
        EXPECT_TRUE(std::ranges::all_of(of_slope.output, is_nan));
        Uniform<PreluBackward, scalar_t, param_t> of_gradient(view, {element, minus_one}, quarter);
        of_gradient.run(set);
        EXPECT_TRUE(std::ranges::all_of(of_gradient.output, is_nan));
        EXPECT_TRUE(std::isnan(of_gradient.sums[0]));
        Uniform<PreluBackward, scalar_t, param_t> of_slope_back(
            view, {minus_one, minus_one}, slope);
        of_slope_back.run(set);
        EXPECT_TRUE(std::ranges::all_of(of_slope_back.output, is_nan));
        EXPECT_EQ(of_slope_back.sums[0], view.numel() / view.channels);
      }
    }
  }
}

// A term that is not finite gives what the plain IEEE sum gives; one that is left out, nothing.
TYPED_TEST(CpuEngine, SumsOfInfinitiesAreThoseOfIEEE) {
  using scalar_t = typename TypeParam::scalar_t;
  using param_t = typename TypeParam::param_t;
  const double inf = std::numeric_limits<double>::infinity();
  for (const ChannelView& view : {ChannelView{5, 1, 4099}, ChannelView{9000, 2, 1}}) {
    for (const InstructionSet set : cpu::supported_instruction_sets()) {
      SCOPED_TRACE(cpu::name_of(set));
      Uniform<PreluBackward, scalar_t, param_t> problem(
          view, {static_cast<scalar_t>(1.0f), static_cast<scalar_t>(-1.0f)},
          static_cast<param_t>(0.25f));
      auto& [gradients, inputs] = problem.inputs;
      const int64_t middle = round_down(view.numel() / 2, view.channels);  // of channel 0
      gradients[middle] = to_scalar<scalar_t>(inf);
      problem.run(set);
      EXPECT_EQ(problem.sums[0], -inf);
      inputs[middle] = static_cast<scalar_t>(1.0f);
      problem.run(set);
      EXPECT_EQ(problem.sums[0], -static_cast<double>(view.numel() / view.channels - 1));
      gradients[middle] = to_scalar<scalar_t>(std::nan(""));
      problem.run(set);
      EXPECT_EQ(problem.sums[0], -static_cast<double>(view.numel() / view.channels - 1));
      inputs[0] = to_scalar<scalar_t>(-inf);
      inputs[view.numel() - view.channels] = to_scalar<scalar_t>(-inf);
      problem.run(set);
      EXPECT_EQ(problem.sums[0], -inf);
      gradients[0] = static_cast<scalar_t>(-1.0f);
      problem.run(set);
      EXPECT_TRUE(std::isnan(problem.sums[0]));
    }
  }
}

// Constant terms are the worst case for sums: each addition rounds the same way.
TYPED_TEST(CpuEngine, StaysInsideTheErrorBoundOnConstantData) {
  using scalar_t = typename TypeParam::scalar_t;
  using param_t = typename TypeParam::param_t;
  constexpr bool kDouble = std::is_same_v<scalar_t, double>;
  const double u = kDouble ? 0x1p-53 : 0x1p-24;
  Tuning one_task;
  one_task.sum_task_elements = 1 << 30;
  one_task.task_multiple = 1;
  one_task.max_joined = 1;
  Tuning past_caches = one_task;
  past_caches.bypass_bytes = 1;
  for (const ChannelView& view :
       {ChannelView{1, 1, 1 << 20}, ChannelView{1 << 19, 2, 1}, ChannelView{1 << 14, 2, 25},
        ChannelView{1 << 8, 3, 3083}}) {
    Uniform<PreluBackward, scalar_t, param_t> problem(
        view, {static_cast<scalar_t>(1.3f), static_cast<scalar_t>(-0.7f)},
        static_cast<param_t>(0.25f));
    const Exact exact = Exact(to_double(problem.inputs[0][0])) *
                        Exact(to_double(problem.inputs[1][0])) * (view.numel() / view.channels);
    // In tasks as usual, and in a single one, whose chains would be as long as they can.
    const auto check = [&](InstructionSet set, const Tuning& tuning) {
      problem.run(set, tuning);
      for (int64_t c = 0; c < view.channels; ++c) {
        EXPECT_LE(
            static_cast<double>(magnitude(problem.sums[c] - exact)),
            static_cast<double>((kDouble ? 8 : 16) * u * magnitude(exact)))
            << cpu::name_of(set) << ' ' << view.inner;
        param_t grad_weight;
        ChannelOutput<scalar_t>{&grad_weight, TypeParam::kWideParams}.write(0, problem.sums[c]);
        if (std::is_same_v<param_t, c10::Half>) {
          EXPECT_TRUE(std::isinf(to_double(grad_weight)));  // far beyond 65504
        } else {
          EXPECT_TRUE(std::isfinite(to_double(grad_weight)));
        }
      }
    };
    for (const InstructionSet set : cpu::supported_instruction_sets()) {
      check(set, kTuning);
      check(set, one_task);
      check(set, past_caches);
    }
  }
}

}  // namespace
}  // namespace torch_ext::cpu_testing
