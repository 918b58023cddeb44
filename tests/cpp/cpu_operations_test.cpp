// The CPU engine runs operations that nobody wrote a line of it for: a made-up one that fills every
// count, and those of norm + PReLU. On every instruction set that this machine has, in every type,
// with the lengths, numbers of columns and misalignments that loads and tails depend on.
#include <gtest/gtest.h>

#include <random>
#include <tuple>

#include "cpu_problem.h"

namespace torch_ext::cpu_testing {
namespace {

using namespace testing_operations;

template <typename Operation, typename Scalar>
struct Case {
  using Op = Operation;
  using scalar_t = Scalar;
};
template <typename Op>
using InAllTypes =
    std::tuple<Case<Op, double>, Case<Op, float>, Case<Op, c10::Half>, Case<Op, c10::BFloat16>>;
template <typename Tuple>
struct TypesOf;
template <typename... Cases>
struct TypesOf<std::tuple<Cases...>> {
  using type = ::testing::Types<Cases...>;
};
using AllCases = typename TypesOf<decltype(std::tuple_cat(
    InAllTypes<Everything>(),
    InAllTypes<Moments>(),
    InAllTypes<NormPreluForward>(),
    InAllTypes<WithoutOutputs<NormPreluReduce>>(),
    InAllTypes<NormPreluReduce>(),
    InAllTypes<NormPreluApply>()))>::type;

template <typename Case>
class CpuOperations : public ::testing::Test {
 protected:
  using Op = typename Case::Op;
  using scalar_t = typename Case::scalar_t;
  using P = Problem<Op, scalar_t>;

  void SetUp() override { P::TheOracle::nonzero_sums = {}; }
  void TearDown() override {
    for (const int64_t count : P::TheOracle::nonzero_sums) {
      EXPECT_GT(count, 0);
    }
  }

  void check(const ChannelView& view, const Options& options, const Tuning& tuning = kTuning) {
    P(view, options, random_).check_all(tuning);
  }

  std::mt19937 random_{3};
};
TYPED_TEST_SUITE(CpuOperations, AllCases);

// Exact data shows what is left out, counted twice, or added where memory has no more elements:
// the shift of Moments, for one, makes a term other than zero of an element that is not there.
TYPED_TEST(CpuOperations, WalksEveryLengthOfOneRun) {
  for (int64_t inner = 1; inner <= 140; ++inner) {
    this->check({1, 1, inner}, {.offset = inner % 16});
    this->check({2, 2, inner + 60}, {.offset = inner % 16, .wide_params = true});
  }
}

TYPED_TEST(CpuOperations, WalksEveryNumberOfColumns) {
  Tuning not_joined;
  not_joined.max_joined = 1;
  for (int64_t channels = 2; channels <= 70; ++channels) {
    const Options options{.offset = channels % 16, .wide_params = channels % 2 == 0};
    this->check({1, channels, 1}, options);
    this->check({14, channels, 1}, options, not_joined);
    this->check({37, channels, 1}, options);
    this->check({5, channels, 1 + channels % 7}, options);
  }
}

// Joined rows of which the last is a short one.
TYPED_TEST(CpuOperations, WalksEveryShareOfTheLastJoinedRow) {
  int64_t short_rows = 0;
  for (int64_t outer = 100; outer < 140; ++outer) {
    const ChannelView view{outer, 3, 1};
    const Plan plan(
        view, sizeof(typename TestFixture::scalar_t), counts_of<typename TypeParam::Op>());
    ASSERT_EQ(plan.traversal(), Traversal::kColumns);
    short_rows += plan.joined() > 1 && outer % plan.joined() != 0;
    this->check(view, {.offset = outer % 16});
  }
  EXPECT_GT(short_rows, 20);
}

TYPED_TEST(CpuOperations, TakesEveryMisalignment) {
  for (int64_t offset = 0; offset < 16; ++offset) {
    for (const bool wide_params : {false, true}) {
      this->check({3, 5, 131}, {.offset = offset, .wide_params = wide_params});
      this->check({19, 21, 3}, {.offset = offset, .wide_params = wide_params});
    }
  }
}

TYPED_TEST(CpuOperations, OneValueServesAllChannels) {
  for (const bool wide_params : {false, true}) {
    this->check({2, 7, 150}, {.wide_params = wide_params, .param_stride = 0});
    this->check({33, 7, 2}, {.wide_params = wide_params, .param_stride = 0});
  }
}

TYPED_TEST(CpuOperations, WritesWholeLinesPastTheCaches) {
  if constexpr (TypeParam::Op::kOutputs > 0) {
    Tuning tuning;
    tuning.bypass_bytes = 1;
    for (const ChannelView& view :
         {ChannelView{1, 1, 5000}, ChannelView{3, 4, 1024}, ChannelView{70, 64, 1}}) {
      typename TestFixture::P problem(view, {}, this->random_);
      EXPECT_TRUE(problem.bypasses_caches(tuning));
      problem.check_all(tuning);
    }
  } else {
    this->check({3, 4, 1024}, {});
  }
}

TYPED_TEST(CpuOperations, GivesTheSumsAlone) {
  if constexpr (TypeParam::Op::kSums > 0) {
    for (const ChannelView& view : {ChannelView{3, 5, 131}, ChannelView{19, 21, 3}}) {
      this->check(view, {.offset = 1, .wants_outputs = false});
    }
  }
}

TYPED_TEST(CpuOperations, CombinesTheTasksOfLargeTensors) {
  Tuning small_tasks;
  small_tasks.sum_task_elements = small_tasks.task_elements = 1000;
  for (const ChannelView& view :
       {ChannelView{3, 2, 2011}, ChannelView{4011, 3, 1}, ChannelView{40, 15, 25}}) {
    typename TestFixture::P problem(view, {.offset = 1}, this->random_);
    EXPECT_GT(problem.plan(small_tasks).size(), 4);
    problem.check_all(small_tasks);
  }
}

// Tasks of one call may differ in their columns: a block of fewer channels may end on a part of a
// pack where the others do not.
TYPED_TEST(CpuOperations, OneCallTakesBlocksOfDifferentWidths) {
  Tuning tuning;
  const OperationCounts counts = counts_of<typename TypeParam::Op>();
  const int64_t bytes = sizeof(compute_type<typename TypeParam::scalar_t>);
  tuning.column_bytes_in_cache = bytes * (counts.params + 3 * counts.sums) * 128;  // 128 columns
  tuning.max_joined = 1;
  for (int64_t channels = 250; channels <= 257; ++channels) {
    typename TestFixture::P problem({5, channels, 1}, {}, this->random_);
    EXPECT_EQ(problem.plan(tuning)[0].channels.size(), channels > 256 ? 86 : (channels + 1) / 2);
    problem.check_all(tuning);
  }
}

TYPED_TEST(CpuOperations, StaysInsideTheErrorBoundOnRandomData) {
  bool wide_params = false;
  for (const ChannelView& view :
       {ChannelView{3, 2, 1511}, ChannelView{1, 1, 5003}, ChannelView{2011, 3, 1},
        ChannelView{3011, 2, 1}, ChannelView{20, 30, 15}, ChannelView{1, 3, 7},
        ChannelView{9, 70, 1}}) {
    this->check(view, {.random = true, .wide_params = wide_params});
    wide_params = !wide_params;
  }
}

}  // namespace
}  // namespace torch_ext::cpu_testing
