// The CPU kernels on plain memory, for every instruction set that this machine has: all lengths
// around the vector's, all misalignments, guard elements around each result, tasks in any order.
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "kernels/cpu/prelu.h"

namespace torch_ext::cpu {
namespace {

template <typename scalar, typename weight>
struct Types {
  using scalar_t = scalar;
  using weight_t = weight;
  using acc_t = std::conditional_t<std::is_same_v<scalar, double>, double, float>;
};
using AllTypes = testing::Types<
    Types<double, double>,
    Types<float, float>,
    Types<c10::Half, c10::Half>,
    Types<c10::Half, float>,
    Types<c10::BFloat16, c10::BFloat16>,
    Types<c10::BFloat16, float>>;

template <typename scalar_t, typename weight_t>
std::vector<std::pair<const char*, const PreluKernels<scalar_t, weight_t>*>> kernel_sets() {
  std::vector<std::pair<const char*, const PreluKernels<scalar_t, weight_t>*>> sets{
      {"DEFAULT", &DEFAULT::prelu_kernels<scalar_t, weight_t>()}};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    sets.emplace_back("AVX2", &AVX2::prelu_kernels<scalar_t, weight_t>());
  }
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    sets.emplace_back("AVX512", &AVX512::prelu_kernels<scalar_t, weight_t>());
  }
#endif
  return sets;
}

// Values between guards, `offset` elements behind the beginning of a cache line.
template <typename T>
class Guarded {
 public:
  Guarded(int64_t size, int64_t offset)
      : size_(size), storage_(size + offset + 2 * kGuard + tuning::kCacheLine, kSentinel()) {
    void* begin = storage_.data() + kGuard;
    size_t space = storage_.size() * sizeof(T);
    std::align(tuning::kCacheLine, size * sizeof(T), begin, space);
    offset_ = static_cast<T*>(begin) - storage_.data() + offset;
  }

  T* data() { return storage_.data() + offset_; }
  T& operator[](int64_t i) { return data()[i]; }
  bool guards_intact() const {
    return std::all_of(storage_.begin(), storage_.begin() + offset_, is_sentinel) &&
           std::all_of(storage_.begin() + offset_ + size_, storage_.end(), is_sentinel);
  }

 private:
  static constexpr int64_t kGuard = 80;
  static T kSentinel() { return T(-77.0f); }
  static bool is_sentinel(const T& value) {
    return static_cast<double>(value) == static_cast<double>(kSentinel());
  }

  int64_t offset_;
  int64_t size_;
  std::vector<T> storage_;
};

template <typename Pair>
class Channelwise : public testing::Test {
 protected:
  using scalar_t = typename Pair::scalar_t;
  using weight_t = typename Pair::weight_t;
  using acc_t = typename Pair::acc_t;

  // Small integers and powers of two: every product and sum below 2^11 is exact in every dtype, so
  // results must be right to the bit whatever the order.
  void check(const ChannelView& view, int64_t offset, bool wants_input, bool wants_weight) {
    for (const auto& [capability, kernels] : kernel_sets<scalar_t, weight_t>()) {
      SCOPED_TRACE(
          testing::Message() << capability << " " << view.outer << " x " << view.channels << " x "
                             << view.inner << " offset " << offset);
      check_on(*kernels, view, offset, wants_input, wants_weight);
    }
  }

  void check_on(
      const PreluKernels<scalar_t, weight_t>& kernels,
      const ChannelView& view,
      int64_t offset,
      bool wants_input,
      bool wants_weight) {
    const int64_t n = view.numel();
    Guarded<scalar_t> input(n, offset), grad_output(n, (offset + 3) % 16), output(n, offset / 2),
        grad_input(n, (offset * 5) % 16);
    Guarded<weight_t> weight(view.channels, offset), grad_weight(view.channels, offset);
    std::vector<double> sums(view.channels), expected_output(n), expected_grad(n);
    for (int64_t c = 0; c < view.channels; ++c) {
      weight[c] =
          static_cast<weight_t>(static_cast<float>(1 << (c % 3)) * (c % 2 == 0 ? -0.5f : 0.25f));
    }
    int64_t positive = 0;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t c = i / view.inner % view.channels;
      // Sparse gradients keep the sums small.
      const double x = static_cast<double>(random_() % 5) - 2;
      const double g = random_() % 8 == 0 ? (random_() % 2 == 0 ? 1 : -1) : 0;
      const double w = static_cast<double>(weight[c]);
      input[i] = static_cast<scalar_t>(static_cast<float>(x));
      grad_output[i] = static_cast<scalar_t>(static_cast<float>(g));
      positive += x > 0;
      expected_output[i] = x > 0 ? x : w * x;
      expected_grad[i] = x > 0 ? g : w * g;
      sums[c] += x > 0 ? 0 : x * g;
    }
    if (n >= 200) {
      ASSERT_GT(positive, n / 5);
      ASSERT_LT(positive, n * 4 / 5);
    }

    const ChannelTasks forward_tasks(view, sizeof(scalar_t), false);
    const ChannelTasks tasks(view, sizeof(scalar_t), wants_weight);
    std::vector<WideSum<acc_t>> partial(tasks.splits() * view.channels);
    const ChannelwiseOperands<scalar_t, weight_t, 1> forward{
        {{input.data()}, output.data()},
        weight.data(),
        forward_tasks.writes_whole_lines(output.data())};
    const ChannelwiseOperands<scalar_t, weight_t, 2> backward{
        {{grad_output.data(), input.data()}, wants_input ? grad_input.data() : nullptr},
        weight.data(),
        tasks.writes_whole_lines(grad_input.data())};
    bypassed_ += forward.bypass_caches && backward.bypass_caches;
    const ChannelSums<acc_t, weight_t> channel_sums{
        wants_weight && tasks.splits() > 1 ? partial.data() : nullptr,
        wants_weight ? grad_weight.data() : nullptr, view.channels};
    for_each_task(forward_tasks.size(), [&](int64_t task) {
      kernels.forward(forward_tasks, task, task + 1, forward);
    });
    for_each_task(tasks.size(), [&](int64_t task) {
      kernels.backward(tasks, task, task + 1, backward, channel_sums);
    });
    if (channel_sums.partial != nullptr) {
      channel_sums.finish(tasks.splits(), 0, view.channels);
    }

    for (int64_t i = 0; i < n; ++i) {
      ASSERT_EQ(static_cast<double>(output[i]), expected_output[i]) << i;
      if (wants_input) {
        ASSERT_EQ(static_cast<double>(grad_input[i]), expected_grad[i]) << i;
      }
    }
    if (wants_weight) {
      for (int64_t c = 0; c < view.channels; ++c) {
        ASSERT_EQ(static_cast<double>(grad_weight[c]), sums[c]) << "channel " << c;
      }
    }
    EXPECT_TRUE(output.guards_intact());
    EXPECT_TRUE(grad_input.guards_intact());
    EXPECT_TRUE(grad_weight.guards_intact());
    EXPECT_TRUE(input.guards_intact());
  }

  template <typename Run>
  void for_each_task(int64_t size, const Run& run) {
    std::vector<int64_t> order(size);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random_);
    if (threads_ == 1) {
      std::for_each(order.begin(), order.end(), run);
      return;
    }
    at_once_ = std::max(at_once_, std::min(size, threads_));
    std::vector<std::jthread> threads;
    for (int64_t t = 0; t < std::min(size, threads_); ++t) {
      threads.emplace_back([&, t] {
        for (int64_t i = t; i < size; i += threads_) {
          run(order[i]);
        }
      });
    }
  }

  std::mt19937 random_{11};
  int64_t threads_ = 1;
  int64_t at_once_ = 0;  // tasks of the problem that had most of them in flight
  int bypassed_ = 0;     // problems that were written past the caches
};

TYPED_TEST_SUITE(Channelwise, AllTypes);

TYPED_TEST(Channelwise, WalksEveryLengthOfOneRun) {
  for (int64_t inner = 1; inner <= 70; ++inner) {
    this->check({1, 1, inner}, inner % 16, true, true);
    this->check({2, 3, inner + 60}, inner % 16, true, true);
  }
}

TYPED_TEST(Channelwise, WalksEveryNumberOfColumns) {
  for (int64_t channels = 1; channels <= 70; ++channels) {
    this->check({1, channels, 1}, channels % 16, true, true);
    this->check({37, channels, 1}, channels % 16, true, true);
    this->check({5, channels, 1 + channels % 7}, channels % 16, true, true);
  }
}

TYPED_TEST(Channelwise, TakesEveryMisalignment) {
  for (int64_t offset = 0; offset < 16; ++offset) {
    this->check({3, 5, 131}, offset, true, true);
    this->check({19, 21, 3}, offset, true, true);
  }
}

TYPED_TEST(Channelwise, WritesWholeLinesPastTheCaches) {
  this->check({1, 1, 5000}, 0, true, true);
  this->check({3, 4, 4096}, 0, true, true);
  this->check({70, 64, 1}, 0, true, true);
  this->check({40, 3, 32}, 0, true, true);
  this->check({3, 5000, 1}, 0, true, true);
  EXPECT_GE(this->bypassed_, 4);
}

TYPED_TEST(Channelwise, LeavesOutWhatIsNotWanted) {
  for (const ChannelView& view : {ChannelView{3, 5, 131}, ChannelView{19, 21, 3}}) {
    this->check(view, 1, true, false);
    this->check(view, 1, false, true);
  }
}

TYPED_TEST(Channelwise, CombinesTheTasksOfLargeTensors) {
  this->check({3, 2, 20011}, 1, true, true);
  this->check({1, 1, 100003}, 0, true, true);
  this->check({30011, 3, 1}, 2, true, true);
  this->check({70, 1030, 1}, 3, true, true);
  this->check({40, 90, 25}, 0, true, true);
}

// For the thread sanitizer: no task writes where another one reads or writes, vectors that reach
// back included.
TYPED_TEST(Channelwise, TasksMayRunAtOnce) {
  this->threads_ = 4;
  for (const ChannelView& view :
       {ChannelView{1, 1, 200003}, ChannelView{3, 2, 20011}, ChannelView{30011, 3, 1},
        ChannelView{70, 1030, 1}, ChannelView{40, 90, 25}, ChannelView{300, 301, 7}}) {
    this->at_once_ = 0;
    this->check(view, 1, true, true);
    EXPECT_EQ(this->at_once_, 4) << view.outer << " x " << view.channels << " x " << view.inner;
  }
}

// A NaN has 2^24 - 2 bit patterns, and rounding to 16 bits must not make a number of any.
TYPED_TEST(Channelwise, KeepsEveryKindOfNaN) {
  using scalar_t = typename TypeParam::scalar_t;
  using weight_t = typename TypeParam::weight_t;
  constexpr int64_t kSize = 100;
  for (const uint32_t bits : {0x7FC00000u, 0xFFC00000u, 0x7F800001u, 0x7FFFFFFFu, 0xFFFFFFFFu}) {
    const auto nan = std::bit_cast<float>(bits);
    const std::vector<scalar_t> ones(kSize, static_cast<scalar_t>(-1.0f));
    std::vector<scalar_t> nans(kSize, static_cast<scalar_t>(nan)), output(kSize), grad(kSize);
    for (const auto& [capability, kernels] : kernel_sets<scalar_t, weight_t>()) {
      for (const ChannelView& view : {ChannelView{1, 1, kSize}, ChannelView{1, kSize, 1}}) {
        for (const bool slope_is_nan : {true, false}) {
          const std::vector<weight_t> weight(
              view.channels, static_cast<weight_t>(slope_is_nan ? nan : 0.25f));
          const scalar_t* const input = slope_is_nan ? ones.data() : nans.data();
          const ChannelTasks tasks(view, sizeof(scalar_t), false);
          kernels->forward(tasks, 0, tasks.size(), {{{input}, output.data()}, weight.data()});
          kernels->backward(
              tasks, 0, tasks.size(), {{{nans.data(), input}, grad.data()}, weight.data()}, {});
          for (int64_t i = 0; i < kSize; ++i) {
            ASSERT_TRUE(std::isnan(static_cast<float>(output[i]))) << capability << ' ' << i;
            ASSERT_TRUE(std::isnan(static_cast<float>(grad[i]))) << capability << ' ' << i;
          }
        }
      }
    }
  }
}

// Constant terms are the worst case for sums: each addition rounds the same way.
TYPED_TEST(Channelwise, StaysInsideTheErrorBoundOnConstantData) {
  using scalar_t = typename TypeParam::scalar_t;
  using weight_t = typename TypeParam::weight_t;
  using acc_t = typename TypeParam::acc_t;
  constexpr bool kDouble = std::is_same_v<acc_t, double>;
  const double u = kDouble ? 0x1p-53 : 0x1p-24;
  const double summation = (kDouble ? 8 : 16) * u;
  for (const ChannelView& view :
       {ChannelView{1, 1, 1 << 20}, ChannelView{1 << 19, 2, 1}, ChannelView{1 << 14, 2, 25}}) {
    const std::vector<scalar_t> input(view.numel(), static_cast<scalar_t>(-0.7f));
    const std::vector<scalar_t> grad_output(view.numel(), static_cast<scalar_t>(1.3f));
    const std::vector<weight_t> weight(view.channels, static_cast<weight_t>(0.25f));
    const long double term = static_cast<long double>(static_cast<double>(input[0])) *
                             static_cast<long double>(static_cast<double>(grad_output[0]));
    const long double exact = term * (view.numel() / view.channels);
    for (const auto& [capability, kernels] : kernel_sets<scalar_t, weight_t>()) {
      const ChannelTasks tasks(view, sizeof(scalar_t), true);
      std::vector<WideSum<acc_t>> partial(tasks.splits() * view.channels);
      std::vector<weight_t> grad_weight(view.channels);
      const ChannelSums<acc_t, weight_t> sums{
          tasks.splits() > 1 ? partial.data() : nullptr, grad_weight.data(), view.channels};
      kernels->backward(
          tasks, 0, tasks.size(), {{{grad_output.data(), input.data()}, nullptr}, weight.data()},
          sums);
      if (sums.partial != nullptr) {
        sums.finish(tasks.splits(), 0, view.channels);
      }
      const double digits = sizeof(weight_t) == 2 ? 0x1p-8 : u;
      for (const weight_t& value : grad_weight) {
        if (std::is_same_v<weight_t, c10::Half>) {
          EXPECT_TRUE(std::isinf(static_cast<float>(value)));  // far beyond 65504
        } else {
          const long double error =
              std::fabs(static_cast<long double>(static_cast<double>(value)) - exact);
          EXPECT_LE(error, (summation + digits) * std::fabs(exact))
              << capability << ' ' << view.inner;
        }
      }
    }
  }
}

}  // namespace
}  // namespace torch_ext::cpu
