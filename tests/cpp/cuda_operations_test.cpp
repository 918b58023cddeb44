// That the CUDA engine runs any channelwise operation: those of operations.h, for which no line of
// it was written, on the CPU as in cuda_engine_test.cpp.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cuda_oracle.h"
#include "operations.h"

namespace torch_ext::cuda {
namespace {

using namespace testing_operations;

template <typename Check>
void for_each_operation(const Check& check) {
  check.template operator()<Everything>("Everything");
  check.template operator()<Moments>("Moments");
  check.template operator()<NormPreluForward>("NormPreluForward");
  check.template operator()<NormPreluReduce>("NormPreluReduce");
  check.template operator()<WithoutOutputs<NormPreluReduce>>("WithoutOutputs<NormPreluReduce>");
  check.template operator()<NormPreluApply>("NormPreluApply");
}

template <typename T>
class Operations : public testing::Test {};
TYPED_TEST_SUITE(Operations, TestedTypes);

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
    int index = 0;
    for (const Case& c : layouts) {
      check<Op, scalar_t>(c, ++index % 2 == 0 ? Fill::kExact : Fill::kRandom, seen);
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
    EXPECT_GT(seen.positive, 100);
    EXPECT_EQ(seen.negative > 100, !(std::is_same_v<Op, Moments>));  // it has no sides
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

}  // namespace
}  // namespace torch_ext::cuda
