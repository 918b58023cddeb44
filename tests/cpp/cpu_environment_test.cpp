// What the CPU engine meets in the threads that run it: the processor's flags for subnormal
// numbers, and little stack.
#include <gtest/gtest.h>
#include <limits.h>
#include <pthread.h>

#include <algorithm>
#include <random>

#include "cpu_problem.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace torch_ext::cpu_testing {
namespace {

using namespace testing_operations;

template <typename T>
class CpuEnvironment : public ::testing::Test {};
TYPED_TEST_SUITE(CpuEnvironment, DataTypes);

// ---- Instruction sets ---------------------------------------------------------------------------

TEST(InstructionSets, HaveTheNamesOfPyTorchsOwn) {
  const std::vector<cpu::InstructionSet> sets = cpu::supported_instruction_sets();
  ASSERT_FALSE(sets.empty());
  EXPECT_EQ(sets.front(), cpu::InstructionSet::DEFAULT);
  for (const cpu::InstructionSet set : sets) {
    EXPECT_EQ(cpu::instruction_set_named(cpu::name_of(set)), set);
  }
  EXPECT_EQ(cpu::instruction_set_named("AVX10"), std::nullopt);  // to be warned of, not guessed at
}

// ---- Subnormal numbers --------------------------------------------------------------------------

#if defined(__x86_64__)

class FlushSubnormals {
 public:
  explicit FlushSubnormals(bool flush) : before_(_mm_getcsr()) {
    if (flush) {
      _MM_SET_FLUSH_ZERO_MODE(_MM_FLUSH_ZERO_ON);
      _MM_SET_DENORMALS_ZERO_MODE(_MM_DENORMALS_ZERO_ON);
    }
  }
  ~FlushSubnormals() { _mm_setcsr(before_); }
  FlushSubnormals(const FlushSubnormals&) = delete;

 private:
  unsigned before_;
};

template <typename scalar_t>
scalar_t smallest() {
  if constexpr (sizeof(scalar_t) == 2) {
    return scalar_t(1, scalar_t::from_bits());
  } else {
    return std::numeric_limits<scalar_t>::denorm_min();
  }
}

// With the processor's flags set, a positive subnormal number counts as zero, as it does for
// PyTorch: it is on the slope's side. (A subnormal float16 is a normal number of the compute type.)
TYPED_TEST(CpuEnvironment, SubnormalsFollowTheProcessorsFlags) {
  using scalar_t = TypeParam;
  constexpr bool kSubnormal = !std::is_same_v<scalar_t, c10::Half>;
  const scalar_t slope = to_scalar<scalar_t>(0.25);
  for (const ChannelView& view :
       {ChannelView{1, 1, 107}, ChannelView{1, 107, 1}, ChannelView{9, 5, 1}}) {
    const std::vector<scalar_t> x(view.numel(), smallest<scalar_t>());
    const std::vector<scalar_t> g(view.numel(), to_scalar<scalar_t>(1));
    const std::vector<scalar_t> slopes(view.channels, slope);
    std::vector<scalar_t> y(view.numel()), grad_input(view.numel());
    std::vector<double> sums(view.channels);
    const auto step = [&](int64_t channel, const std::array<double, 1>& totals) {
      sums[channel] = totals[0];
    };
    const ChannelInput<scalar_t> param{slopes.data(), false, 1};
    const cpu::Operands<PreluForward, scalar_t> forward{{x.data()}, {y.data()}, {param}};
    const cpu::Operands<PreluBackward, scalar_t> backward{
        {g.data(), x.data()}, {grad_input.data()}, {param}};
    for (const InstructionSet set : cpu::supported_instruction_sets()) {
      for (const bool flush : {true, false}) {
        SCOPED_TRACE(
            ::testing::Message() << cpu::name_of(set) << ' ' << view.channels << " flush "
                                 << flush);
        {
          const FlushSubnormals flags(flush);
          cpu::run(view, {set}, Threads(), cpu::Sweep(forward, NoStep()));
          cpu::run(view, {set}, Threads(), cpu::Sweep(backward, step));
        }
        const bool is_zero = flush && kSubnormal;
        for (int64_t i = 0; i < view.numel(); ++i) {
          ASSERT_EQ(to_double(y[i]), is_zero ? 0 : to_double(x[i])) << i;
          ASSERT_EQ(to_double(grad_input[i]), is_zero ? 0.25 : 1) << i;
        }
        for (const double sum : sums) {
          ASSERT_EQ(sum, 0);
        }
      }
    }
  }
}

#endif

// ---- Stacks -------------------------------------------------------------------------------------

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define TORCH_EXT_SANITIZED
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define TORCH_EXT_SANITIZED
#endif
#endif

// A Runtime whose threads have a stack of 64 KiB, as OMP_STACKSIZE and some C libraries give, or
// the least that there can be: 128 KiB on aarch64. (Sanitizers put guards around all that lies
// there.)
class SmallStacks {
 public:
#if defined(TORCH_EXT_SANITIZED)
  static constexpr size_t kBytes = 1 << 20;
#else
  static constexpr size_t kBytes = 64 << 10;
#endif

  template <typename Body>
  void parallel_for(int64_t size, int64_t, const Body& body) const {
    const auto work = [&] { body(0, size); };
    pthread_attr_t attributes;
    ASSERT_EQ(pthread_attr_init(&attributes), 0);
    const size_t bytes = std::max(kBytes, static_cast<size_t>(PTHREAD_STACK_MIN));
    ASSERT_EQ(pthread_attr_setstacksize(&attributes, bytes), 0);
    pthread_t thread;
    const auto run = [](void* argument) -> void* {
      (*static_cast<decltype(work)*>(argument))();
      return nullptr;
    };
    ASSERT_EQ(
        pthread_create(
            &thread, &attributes, run, const_cast<void*>(static_cast<const void*>(&work))),
        0);
    pthread_join(thread, nullptr);
    pthread_attr_destroy(&attributes);
    ++runs_;
  }
  cpu::Memory allocate(int64_t bytes) const { return Threads().allocate(bytes); }

  int64_t runs() const { return runs_; }

 private:
  mutable int64_t runs_ = 0;
};

template <typename Op, typename scalar_t>
void expect_little_stack(const ChannelView& view, std::mt19937& random, const Tuning& tuning) {
  Problem<Op, scalar_t> problem(view, {}, random);
  for (const InstructionSet set : cpu::supported_instruction_sets()) {
    const SmallStacks runtime;
    problem.check(set, runtime, tuning);
    EXPECT_GE(runtime.runs(), 1);
  }
}

TYPED_TEST(CpuEnvironment, TasksNeedLittleStack) {
  std::mt19937 random(2);
  // As many columns to a task as (4096, 3000) has, which does not depend on the rows.
  const ChannelView columns{16, 3000, 1};
  const ChannelView planes{1, 1000, 130};
  Tuning tuning;
  tuning.cache_bytes = 0;
  const auto columns_of_task = [](const ChannelView& view, const Tuning& with) {
    return Plan(view, sizeof(TypeParam), counts_of<Everything>(), with)[0].channels.size();
  };
  EXPECT_EQ(columns_of_task(columns, tuning), columns_of_task({4096, 3000, 1}, kTuning));
  for (const ChannelView& view : {columns, planes}) {
    expect_little_stack<PreluBackward, TypeParam>(view, random, tuning);
    expect_little_stack<Everything, TypeParam>(view, random, tuning);
    expect_little_stack<NormPreluApply, TypeParam>(view, random, tuning);
  }
}

}  // namespace
}  // namespace torch_ext::cpu_testing
