// The CUDA engine itself, run on the CPU (cuda_emulation.h) with small blocks on a small device, so
// that every path is taken by small tensors: PReLU against an oracle that shares no code with it.
// (cuda_operations_test.cpp: that it runs any operation.)
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "cuda_prelu.h"

namespace torch_ext::cuda {
namespace {

const Case kLayouts[] = {
    // Planes: aligned, odd, smaller than a block, shared, one.
    {{2, 3, 512}},
    {{3, 2, 333}},
    {{7, 2, 261}},
    {{1, 1, 5000}},
    {{1, 5, 777}},
    {{2, 1, 1031}},
    // Columns: channels side by side. Narrow rows are merged, long ones cut; odd ones take turns.
    {{100, 1, 1}},
    {{301, 3, 1}},
    {{97, 7, 1}},
    {{65, 24, 1}},
    {{40, 64, 1}},
    {{33, 45, 1}},
    {{9, 300, 1}},
    {{5, 301, 1}},
    {{19, 515, 1}},
    {{2, 1003, 1}},
    {{1, 1000, 1}},
    {{1, 1, 1}},
    // Columns: short runs.
    {{5, 6, 49}},
    {{3, 40, 9}},
    {{17, 3, 4}},
    {{2, 64, 5}},
    {{3, 11, 7}},
    {{9, 1, 13}},
    // Wider blocks.
    {{3, 5, 400}, {0, 0, 0}, 64},
    {{50, 33, 1}, {0, 0, 0}, 64},
    {{4, 12, 49}, {0, 0, 0}, 96},
    // Fewer blocks than tasks.
    {{4, 7, 300}, {0, 0, 0}, 32, 2},
    {{9, 700, 1}, {0, 0, 0}, 32, 3},
    // Sums that a cluster of blocks shares: full ones, with an idle block, in turns, with segments,
    // odd rows, merged rows and misaligned storage.
    {{1, 1, 5000}, {0, 0, 0}, 32, 0, 20, 4},
    {{1, 1, 5 * 32 * 8}, {0, 0, 0}, 32, 0, 20, 4},
    {{3, 2, 777}, {1, 0, 0}, 32, 0, 20, 2},
    {{4, 3, 900}, {0, 0, 0}, 32, 4, 20, 4},
    {{100, 64, 1}, {0, 0, 0}, 32, 0, 50, 4},
    {{65, 7, 1}, {0, 1, 0}, 64, 0, 50, 8},
    {{20, 700, 1}, {0, 0, 0}, 32, 2, 20, 2},
    {{33, 45, 1}, {0, 0, 0}, 32, 0, 50, 2},
    {{40, 6, 9}, {0, 0, 1}, 32, 0, 20, 4}};

template <typename T>
class Layouts : public testing::Test {};
TYPED_TEST_SUITE(Layouts, TestedTypes);

TYPED_TEST(Layouts, AllPaths) {
  using scalar_t = TypeParam;
  Seen seen{};
  int index = 0;
  for (const Case& c : kLayouts) {
    check_all<scalar_t>(c, ++index % 2 == 0 ? Fill::kExact : Fill::kRandom, seen);
    ASSERT_FALSE(this->HasFatalFailure());
  }
  for (const int count :
       {seen.planes, seen.columns, seen.passes, seen.segments, seen.merged, seen.splits,
        seen.clusters, seen.unsplit}) {
    EXPECT_GT(count, 0);
  }
  EXPECT_GT(seen.positive, 1000);
  EXPECT_GT(seen.negative, 1000);
}

TYPED_TEST(Layouts, Misalignment) {
  using scalar_t = TypeParam;
  constexpr int kPack = Pack<scalar_t>::kSize;
  Seen seen{};
  for (int offset = 1; offset < kPack; ++offset) {
    const int other = (offset * 3 + 1) % kPack;
    for (const ChannelView view : {ChannelView{2, 2, 600}, {7, 77, 1}, {9, 3, 1}, {2, 5, 21}}) {
      check_all<scalar_t>({view, {offset, 0, 0}}, Fill::kExact, seen);
      check_all<scalar_t>({view, {offset, offset, offset}}, Fill::kRandom, seen);
      check_all<scalar_t>({view, {0, offset, other}}, Fill::kRandom, seen);
      ASSERT_FALSE(this->HasFatalFailure());
    }
  }
  EXPECT_GT(seen.shifted, 2);
  EXPECT_GT(seen.planes, 2);
  EXPECT_GT(seen.columns, 2);
}

// Every size around one and two packs, for runs and for channels.
TYPED_TEST(Layouts, Tails) {
  using scalar_t = TypeParam;
  constexpr int kPack = Pack<scalar_t>::kSize;
  Seen seen{};
  for (int size = 1; size <= 2 * kPack + 1; ++size) {
    check_all<scalar_t>({{2, 2, size}}, Fill::kExact, seen);
    check_all<scalar_t>({{5, size, 1}, {0, 1, 0}}, Fill::kExact, seen);
    check_all<scalar_t>({{1, 1, 32 * kPack + size}}, Fill::kExact, seen);
    ASSERT_FALSE(this->HasFatalFailure());
  }
  EXPECT_GT(seen.planes, 2);
  EXPECT_GT(seen.columns, 2);
}

TYPED_TEST(Layouts, MaskedOutputs) {
  using scalar_t = TypeParam;
  Seen seen{};
  for (const ChannelView view : {ChannelView{2, 3, 301}, {33, 5, 1}, {3, 401, 1}}) {
    const auto problem = prelu_problem<scalar_t>({view, {0, 1, 0}}, Fill::kExact, true);
    for (const Outputs wanted : {Outputs{true, false}, Outputs{false, true}}) {
      check_backward(problem, wanted, true, seen);
      ASSERT_FALSE(this->HasFatalFailure());
    }
  }
  EXPECT_GT(seen.splits, 0);
}

// The same term so often that a thread's chain in the accumulation type would drift out of the
// bound; in one block, split over blocks, and over a cluster.
TYPED_TEST(Layouts, ConstantData) {
  using scalar_t = TypeParam;
  Seen seen{};
  const int64_t count = std::is_same_v<scalar_t, double> ? 3000000 : 300000;
  for (const ChannelView view : {ChannelView{1, 1, count}, {count / 2, 2, 1}}) {
    for (const auto& [unsplit, cluster] : {std::pair{2, 1}, {1 << 20, 1}, {1 << 20, 4}}) {
      const Case c{view, {0, 0, 0}, 32, 0, unsplit, cluster};
      check_all<scalar_t>(c, Fill::kConstant, seen);
      ASSERT_FALSE(this->HasFatalFailure());
    }
  }
  const int expected = static_cast<int>(2 * slope_types<scalar_t>().size());
  EXPECT_EQ(seen.splits, expected);
  EXPECT_EQ(seen.clusters, expected);
  EXPECT_EQ(seen.unsplit, expected);
  EXPECT_EQ(seen.positive, 0);
}

// Every special value against every other, in x, g and weight.
TYPED_TEST(Layouts, SpecialValues) {
  using scalar_t = TypeParam;
  const double tiny = std::is_same_v<scalar_t, double>          ? 0x1p-1074
                      : std::is_same_v<scalar_t, c10::Half>     ? 0x1p-24
                      : std::is_same_v<scalar_t, c10::BFloat16> ? 0x1p-133
                                                                : 0x1p-149;
  const std::array values{0.0, -0.0, kInf, -kInf, kNaN, 1.0, -1.0, tiny, -tiny, -0.75};
  const int64_t count = values.size();
  const int64_t pairs = count * count;
  Seen seen{};
  for (const ChannelView view : {ChannelView{pairs, count, 1}, {1, count, 6 * pairs}}) {
    for (const bool is_compute_type : slope_types<scalar_t>()) {
      auto problem = prelu_problem<scalar_t>({view}, Fill::kExact, is_compute_type);
      for (int64_t c = 0; c < count; ++c) {
        problem.params[0].set(c, values[c]);
      }
      for (int64_t i = 0; i < view.numel(); ++i) {
        const int64_t pair = view.inner == 1 ? i / count : i % pairs;
        problem.x().data()[i] = cast<scalar_t>(values[pair / count]);
        problem.g().data()[i] = cast<scalar_t>(values[pair % count]);
      }
      check_forward(problem, seen);
      check_backward(problem, {true, true}, false, seen);
      ASSERT_FALSE(this->HasFatalFailure());
    }
  }
  EXPECT_GT(seen.planes, 0);
  EXPECT_GT(seen.columns, 0);
}

// Each channel's sum holds one case: a term that is not finite somewhere among many that are, the
// same infinity twice, both infinities, and infinities that the select leaves out.
TYPED_TEST(Layouts, NonFiniteSums) {
  using scalar_t = TypeParam;
  struct Term {
    double x, g;
  };
  const std::array<std::array<Term, 2>, 7> cases{{
      {{{-1, kInf}, {-1, 2}}},       // -Inf
      {{{-1, -kInf}, {-2, -kInf}}},  // +Inf
      {{{-1, kInf}, {-1, -kInf}}},   // NaN
      {{{-0.0, kInf}, {-1, 1}}},     // NaN
      {{{-kInf, 1}, {-kInf, 3}}},    // -Inf
      {{{1, kInf}, {2, kNaN}}},      // left out: finite
      {{{-1, kNaN}, {-1, 1}}},       // NaN
  }};
  const int64_t count = cases.size();
  Seen seen{};
  int infinite = 0, nan = 0, finite = 0;
  for (const ChannelView view : {ChannelView{700, count, 1}, {3, count, 900}}) {
    auto problem = prelu_problem<scalar_t>({view}, Fill::kExact, true);
    for (int64_t c = 0; c < count; ++c) {
      // Far apart, so that different threads, chains and splits meet them.
      const int64_t last = (view.outer - 1) * count * view.inner;
      const std::array at{c * view.inner + view.inner / 3, last + c * view.inner + view.inner / 2};
      for (int i = 0; i < 2; ++i) {
        problem.x().data()[at[i]] = cast<scalar_t>(cases[c][i].x);
        problem.g().data()[at[i]] = cast<scalar_t>(cases[c][i].g);
      }
    }
    Param<scalar_t> grad_weight(count, true, 1);
    run<PreluBackward>(problem, nullptr, seen, StoreSums<scalar_t, 1>{{{grad_weight.output()}}});
    check_sums(problem, grad_weight, true);
    ASSERT_FALSE(this->HasFatalFailure());
    for (int64_t c = 0; c < count; ++c) {
      const double sum = grad_weight[c];
      ++(std::isnan(sum) ? nan : std::isinf(sum) ? infinite : finite);
    }
  }
  EXPECT_EQ(infinite, 6);
  EXPECT_EQ(nan, 6);
  EXPECT_EQ(finite, 2);
}

// Same bits from run to run, though the threads of a block arrive in any order.
TYPED_TEST(Layouts, Determinism) {
  using scalar_t = TypeParam;
  Seen seen{};
  const Case cases[] = {
      {{3, 2, 700}},
      {{150, 3, 1}},
      {{3, 2, 700}, {0, 0, 0}, 32, 0, 20, 4},
      {{150, 3, 1}, {0, 0, 0}, 32, 0, 20, 4}};
  for (const Case& c : cases) {
    const auto problem = prelu_problem<scalar_t>(c, Fill::kRandom, true);
    const auto sums = [&] {
      Param<scalar_t> sums(c.view.channels, true, 1);
      run<PreluBackward>(problem, nullptr, seen, StoreSums<scalar_t, 1>{{{sums.output()}}});
      return sums;
    };
    const Param<scalar_t> first = sums();
    for (int repeat = 0; repeat < 5; ++repeat) {
      const Param<scalar_t> again = sums();
      const size_t bytes = c.view.channels * sizeof(compute_type<scalar_t>);
      ASSERT_EQ(std::memcmp(first.wide.data(), again.wide.data(), bytes), 0);
    }
  }
  EXPECT_GT(seen.splits, 0);
  EXPECT_GT(seen.clusters, 0);
}

}  // namespace
}  // namespace torch_ext::cuda
