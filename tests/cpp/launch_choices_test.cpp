// What the CUDA launch plan chooses: how many kernels a sum takes, and from which row of the tuning
// table. (launch_plan_test.cpp: that whatever it chooses is right.)
#include "kernels/cuda/launch_plan.h"

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
            const Work work{view, element, element == 8 ? 8 : 4, base, base != 0, true};
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
  const Work work{{1, 1, 250000}, 4, 4, 0, false, true};
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
    EXPECT_LE(row.threads, kMaxThreads);
    EXPECT_EQ(row.threads % 32, 0);
    EXPECT_TRUE(row.cluster == 1 || (row.arch >= 90 && row.cluster <= 8));
  }
  EXPECT_EQ(tuning_of(75).arch, 0);
  EXPECT_EQ(tuning_of(90).arch, 90);
  EXPECT_EQ(tuning_of(121).arch, 100);
}

}  // namespace
}  // namespace torch_ext::cuda
