// What the CUDA launch plan chooses: how many kernels a sum takes, and from which row of the tuning
// table. (launch_plan_test.cpp: that whatever it chooses is right.)
#include "kernels/cuda/plan.h"

#include <gtest/gtest.h>

#include <cstdint>

namespace torch_ext::cuda {
namespace {

// What a small tensor's backward waits for is launches: one, where there are clusters.
TEST(LaunchPlan, SmallSumsTakeOneKernel) {
  int clustered = 0;
  for (const int64_t bytes : {1000, 60000, 300000, 1000000}) {
    for (const int element : {2, 4, 8}) {
      for (const int64_t channels : {1, 3, 7, 24, 64, 128, 256, 512, 1000}) {
        for (const int64_t inner : {1, 9, 49, 196, 784, 12544}) {
          for (const int base : {0, 1}) {
            const ChannelView view{bytes / element / channels / inner, channels, inner};
            if (view.outer == 0) {
              continue;
            }
            const Work work{view, {2, 1, 1, 1}, element, base, base != 0};
            const LaunchPlan plan = plan_launch(work, tuning_of(90), {132, 2048, true});
            clustered += plan.cluster > 1;
            EXPECT_FALSE(plan.has_second_kernel())
                << view.outer << " x " << channels << " x " << inner << ", element " << element;
          }
        }
      }
    }
  }
  EXPECT_GT(clustered, 100);
}

// A device or a build without clusters keeps the second kernel.
TEST(LaunchPlan, ClustersNeedADeviceThatHasThem) {
  const Work work{{1, 1, 250000}, {2, 1, 1, 1}, 4, 0, false};
  EXPECT_EQ(plan_launch(work, tuning_of(90), {132, 2048, true}).cluster, 8);
  const LaunchPlan plan = plan_launch(work, tuning_of(90), {132, 2048, false});
  EXPECT_EQ(plan.cluster, 1);
  EXPECT_TRUE(plan.has_second_kernel());
}

TEST(FinishPlan, SumsEveryPartialOnce) {
  bool many_lanes = false;
  bool many_blocks = false;
  for (const int64_t channels : {1, 2, 3, 7, 24, 64, 1000, 4097}) {
    for (const int64_t splits : {2, 3, 8, 9, 100, 1180, 5000}) {
      const FinishPlan plan = plan_finish(channels, splits);
      many_lanes |= plan.lanes > 1;
      many_blocks |= plan.grid > 1;
      ASSERT_LE(plan.width * plan.lanes, plan.threads);
      ASSERT_LE(plan.threads, kMaxFinishThreads);
      ASSERT_EQ(plan.threads % 32, 0);
      ASSERT_GE(plan.grid * plan.width, channels);
      ASSERT_LT((plan.grid - 1) * plan.width, channels);
    }
  }
  EXPECT_TRUE(many_lanes);
  EXPECT_TRUE(many_blocks);
  EXPECT_EQ(plan_finish(int64_t{1} << 45, 2).grid, INT32_MAX);
}

TEST(Tuning, FitsTheKernels) {
  int arch = -1;
  for (const Tuning& row : kTuning) {
    EXPECT_GT(row.arch, arch);
    arch = row.arch;
    EXPECT_LE(row.threads, max_threads({1, 1, 1, 0}));
    EXPECT_EQ(row.threads % 32, 0);
    EXPECT_TRUE(row.cluster == 1 || (row.arch >= 90 && row.cluster <= 8));
  }
  EXPECT_EQ(tuning_of(75).arch, 0);
  EXPECT_EQ(tuning_of(90).arch, 90);
  EXPECT_EQ(tuning_of(121).arch, 100);
}

// What an operation's counts decide keeps within what a GPU has.
TEST(Tuning, FollowsAnOperationsCounts) {
  for (int inputs = 1; inputs <= 4; ++inputs) {
    for (int params = 0; params <= 6; ++params) {
      for (int sums = 0; sums <= 3; ++sums) {
        const OperationCounts counts{inputs, 1, params, sums};
        EXPECT_LE(max_threads(counts) * kMinBlocks, 512) << "at least 128 registers for each";
        EXPECT_EQ(max_threads(counts) % kWarp, 0);
        for (const bool shifted : {false, true}) {
          const int packs = packs_per_visit(counts, shifted);
          EXPECT_GE(packs, 1);
          EXPECT_LE(packs * inputs * (shifted ? 2 : 1), 8);
        }
      }
    }
  }
  // An operation with several sums has smaller blocks, whatever the GPU's tuning wants.
  const Work one{{1 << 20, 64, 1}, {2, 1, 1, 1}, 4, 0, false};
  const Work three{{1 << 20, 64, 1}, {2, 1, 1, 3}, 4, 0, false};
  EXPECT_EQ(plan_launch(one, tuning_of(90), {132, 2048, true}).threads, 256);
  EXPECT_EQ(plan_launch(three, tuning_of(90), {132, 2048, true}).threads, 128);
}

}  // namespace
}  // namespace torch_ext::cuda
