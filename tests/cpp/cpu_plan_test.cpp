// How the CPU engine cuts work into tasks: every element in exactly one, whatever the sizes and
// whatever the operation.
#include "kernels/cpu/plan.h"

#include <gtest/gtest.h>

#include <fstream>
#include <random>
#include <vector>

#include "kernels/cpu/last_level_cache.h"
#include "kernels/prelu.h"
#include "operations.h"

namespace torch_ext::cpu {
namespace {

using testing_operations::Everything;

// One param or six, no sum, one, two or three.
constexpr std::array kOperations{
    counts_of<PreluForward>(), counts_of<PreluBackward>(), counts_of<Moments>(),
    counts_of<NormPreluApply>(), counts_of<Everything>()};

std::string description(const ChannelView& view, int64_t element_bytes, const OperationCounts& op) {
  return std::to_string(view.outer) + " x " + std::to_string(view.channels) + " x " +
         std::to_string(view.inner) + ", " + std::to_string(element_bytes) + " bytes, " +
         std::to_string(op.params) + " params, " + std::to_string(op.sums) + " sums";
}

// Marks the elements of every task as the traversals read them.
std::vector<int> visits(const Plan& plan) {
  const ChannelView& view = plan.view();
  std::vector<int> count(view.numel());
  for (int64_t i = 0; i < plan.size(); ++i) {
    const Task task = plan[i];
    for (int64_t row = task.rows.first; row < task.rows.last; ++row) {
      for (int64_t j = 0; j < plan.joined(); ++j) {
        for (int64_t c = task.channels.first; c < task.channels.last; ++c) {
          for (int64_t k = task.inner.first; k < task.inner.last; ++k) {
            const int64_t outer = row * plan.joined() + j;
            if (outer < view.outer) {  // the last row of joined ones may be short
              ++count[(outer * view.channels + c) * view.inner + k];
            }
          }
        }
      }
    }
  }
  return count;
}

// No two tasks share a cell of the partial sums, and all cells are written.
void expect_cells_of_one_task_each(const Plan& plan) {
  std::vector<int> cells(plan.splits() * plan.view().channels);
  for (int64_t i = 0; i < plan.size(); ++i) {
    const Task task = plan[i];
    ASSERT_LT(task.split, plan.splits());
    for (int64_t c = task.channels.first; c < task.channels.last; ++c) {
      ++cells[task.split * plan.view().channels + c];
    }
  }
  for (const int count : cells) {
    ASSERT_EQ(count, 1);
  }
}

// What a task keeps at hand fits the tuning's bounds, where at least one channel does.
void expect_bounded_tasks(
    const Plan& plan, int64_t element_bytes, const OperationCounts& counts, const Tuning& tuning) {
  const ChannelView& view = plan.view();
  const int64_t column_bytes = (element_bytes == 8 ? 8 : 4) * (counts.params + 3 * counts.sums);
  for (int64_t i = 0; i < plan.size(); ++i) {
    const Task task = plan[i];
    if (plan.traversal() == Traversal::kPlanes) {
      ASSERT_EQ(plan.joined(), 1);
      if (counts.sums > 0) {
        ASSERT_LE(task.channels.size(), tuning.max_plane_channels);
      }
    } else {
      ASSERT_EQ(task.inner.size(), view.inner);
      const int64_t columns = plan.joined() * task.channels.size() * view.inner;
      if (columns > view.inner) {
        const bool in_cache = view.numel() * element_bytes < tuning.cache_bytes;
        ASSERT_LE(
            columns * column_bytes, in_cache ? tuning.column_bytes_in_cache : tuning.column_bytes);
      }
      if (plan.joined() > 1) {
        ASSERT_LE(columns, std::max<int64_t>(tuning.max_joined / 3 * 4, tuning.max_joined));
      }
    }
  }
}

void expect_sound(
    const ChannelView& view,
    int64_t element_bytes,
    const OperationCounts& counts,
    const Tuning& tuning = kTuning) {
  SCOPED_TRACE(description(view, element_bytes, counts));
  const Plan plan(view, element_bytes, counts, tuning);
  ASSERT_GE(plan.size(), 1);
  ASSERT_GE(plan.task_grain(), 1);
  ASSERT_GE(plan.channel_grain(), 1);
  for (const int count : visits(plan)) {
    ASSERT_EQ(count, 1);
  }
  expect_cells_of_one_task_each(plan);
  expect_bounded_tasks(plan, element_bytes, counts, tuning);
}

TEST(CpuPlan, VisitsEveryElementOnceForSmallSizes) {
  for (const int64_t outer : {1, 2, 3, 17, 100}) {
    for (const int64_t channels : {1, 2, 3, 7, 16, 24, 130}) {
      for (const int64_t inner : {1, 2, 5, 25, 49, 63, 64, 65, 200}) {
        for (const int64_t element_bytes : {2, 4, 8}) {
          for (const OperationCounts& counts : {kOperations[0], kOperations[1], kOperations[4]}) {
            expect_sound({outer, channels, inner}, element_bytes, counts);
          }
        }
      }
    }
  }
}

// Numbers up to `most`, with a product of about `numel`.
ChannelView random_view(std::mt19937& random, int64_t numel, int64_t most_inner) {
  const auto up_to = [&](int64_t most) { return 1 + static_cast<int64_t>(random() % most); };
  const int64_t inner = up_to(most_inner);
  const int64_t channels =
      up_to(std::clamp<int64_t>(numel / inner, 1, random() % 2 == 0 ? 12 : 3000));
  return {up_to(std::max<int64_t>(1, numel / inner / channels)), channels, inner};
}

TEST(CpuPlan, VisitsEveryElementOnceForRandomSizes) {
  std::mt19937 random(7);
  int64_t planes = 0, columns = 0, joined = 0, split = 0;
  for (int i = 0; i < 300; ++i) {
    const ChannelView view = random_view(random, 300000, i % 2 == 0 ? 80 : 40000);
    const OperationCounts& counts = kOperations[i % kOperations.size()];
    const int64_t element_bytes = 2 << i % 3;
    expect_sound(view, element_bytes, counts);
    const Plan plan(view, element_bytes, counts);
    ++(plan.traversal() == Traversal::kPlanes ? planes : columns);
    joined += plan.joined() > 1;
    split += plan.splits() > 1;
  }
  EXPECT_GT(std::min(planes, columns), 30);
  EXPECT_GT(std::min(joined, split), 10);
}

TEST(CpuPlan, FollowsTheTuningThatItIsGiven) {
  std::mt19937 random(8);
  const auto one_of = [&](std::initializer_list<int64_t> values) {
    return values.begin()[random() % values.size()];
  };
  for (int i = 0; i < 300; ++i) {
    Tuning tuning;
    tuning.task_elements = one_of({1, 100, 5000});
    tuning.sum_task_elements = one_of({1, 300, 7000});
    tuning.task_multiple = one_of({1, 3, 8});
    tuning.max_tasks = one_of({1, 7, 1000});
    tuning.thread_elements = one_of({1, 1000, 100000});
    tuning.min_plane = tuning.min_plane_16_bit = one_of({1, 10, 1000});
    tuning.few_rows = one_of({0, 4});
    tuning.max_plane_channels = one_of({1, 5, 128});
    tuning.min_chunk_bytes = one_of({1, 2000, 16384});
    tuning.last_level_bytes = one_of({1, 20000, INT64_MAX});
    tuning.column_bytes = one_of({1, 1000, 32768});
    tuning.column_bytes_in_cache = one_of({1, 2000, 16384});
    tuning.cache_bytes = one_of({1, 10000, 8 << 20});
    tuning.max_joined = one_of({1, 50, 960});
    tuning.min_sum_rows = one_of({1, 64});
    const ChannelView view = random_view(random, 20000, i % 2 == 0 ? 40 : 3000);
    expect_sound(view, 2 << i % 3, kOperations[i % kOperations.size()], tuning);
  }
}

TEST(CpuPlan, TheTuningChoosesTheTraversal) {
  const ChannelView view{100, 8, 30};
  Tuning tuning;
  tuning.min_plane = 30;
  EXPECT_EQ(Plan(view, 4, kOperations[0], tuning).traversal(), Traversal::kPlanes);
  tuning.min_plane = 31;
  EXPECT_EQ(Plan(view, 4, kOperations[0], tuning).traversal(), Traversal::kColumns);
  EXPECT_EQ(Plan({100, 1, 1}, 4, kOperations[0]).traversal(), Traversal::kPlanes);
}

// An operation that keeps more of each column has fewer of them in a task.
TEST(CpuPlan, CountsOfTheOperationBoundTheColumns) {
  const ChannelView view{1000, 5000, 1};
  const auto columns = [&](const OperationCounts& counts, int64_t element_bytes) {
    return Plan(view, element_bytes, counts)[0].channels.size();
  };
  EXPECT_GT(columns(counts_of<PreluBackward>(), 4), columns(counts_of<Everything>(), 4));
  EXPECT_GT(columns(counts_of<Everything>(), 2), columns(counts_of<Everything>(), 8));
  EXPECT_LE(columns(counts_of<Everything>(), 8), kTuning.column_bytes / (8 * (6 + 3 * 3)));
}

// The memory that partial sums take, in elements of the input.
TEST(CpuPlan, KeepsPartialSumsFew) {
  const std::vector<ChannelView> views{
      {64, 256, 196},   {64, 512, 49},   {12544, 256, 1}, {401408, 24, 1}, {1, 1, 1 << 24},
      {128, 64, 12544}, {1 << 20, 3, 1}, {4096, 1000, 1}, {2, 32, 884736}, {128, 512, 64}};
  for (const ChannelView& view : views) {
    for (const OperationCounts& counts : kOperations) {
      for (const int64_t element_bytes : {2, 4, 8}) {
        if (counts.sums > 0) {
          const Plan plan(view, element_bytes, counts);
          EXPECT_LE(plan.splits() * view.channels * 16, view.numel())
              << description(view, element_bytes, counts);
        }
      }
    }
  }
}

// Large tensors are cut into shares that are equal for few threads.
TEST(CpuPlan, LargeTensorsHaveTasksForAllThreads) {
  for (const ChannelView& view :
       {ChannelView{1, 1, 1 << 20}, ChannelView{64, 64, 3136}, ChannelView{12544, 256, 1},
        ChannelView{401408, 3, 1}, ChannelView{8, 4096, 196}}) {
    for (const OperationCounts& counts : kOperations) {
      EXPECT_GE(Plan(view, 4, counts).size(), kTuning.task_multiple)
          << description(view, 4, counts);
    }
  }
}

// Sizes past 2^32: nothing is narrowed on the way.
TEST(CpuPlan, PositionsHave64Bits) {
  constexpr int64_t kHuge = int64_t{1} << 32;
  for (const OperationCounts& counts : kOperations) {
    for (const ChannelView& view :
         {ChannelView{int64_t{1} << 20, 4096, 4096}, ChannelView{1, 1, 2 * kHuge},
          ChannelView{kHuge, 3, 1}, ChannelView{kHuge + 1, 4, 60}, ChannelView{2, kHuge / 2, 2},
          ChannelView{3, kHuge + 5, 1}}) {
      SCOPED_TRACE(description(view, 4, counts));
      const Plan plan(view, 4, counts);
      const Task first = plan[0];
      const Task last = plan[plan.size() - 1];
      EXPECT_EQ(first.rows.first + first.channels.first + first.inner.first + first.split, 0);
      EXPECT_EQ(last.rows.last, ceil_div(view.outer, plan.joined()));
      EXPECT_EQ(last.channels.last, view.channels);
      EXPECT_EQ(last.inner.last, view.inner);
      EXPECT_EQ(last.split, plan.splits() - 1);
      EXPECT_EQ(plan.row_size(), plan.joined() * view.channels * view.inner);
      EXPECT_GE(plan.task_grain(), 1);
    }
  }
  EXPECT_LE(Plan({kHuge, 3, 1}, 4, counts_of<PreluBackward>()).row_size(), kTuning.max_joined);
  EXPECT_EQ(Plan({2, kHuge / 2, 2}, 4, counts_of<PreluBackward>()).row_size(), kHuge);
}

// ---- Tasks of whole channels --------------------------------------------------------------------

TEST(CpuPlan, TasksOfWholeChannelsHoldThemAndFitTheCache) {
  std::mt19937 random(9);
  int64_t taken = 0, of_several = 0, refused = 0;
  for (int i = 0; i < 400; ++i) {
    const ChannelView view = random_view(random, 400000, 5000);
    const OperationCounts& counts = kOperations[i % kOperations.size()];
    const int64_t element_bytes = 2 << i % 3;
    const int tensors = 1 + i % 4;
    Tuning tuning;
    tuning.whole_channel_bytes = 10000 << i % 6;
    SCOPED_TRACE(description(view, element_bytes, counts));
    const auto plan = Plan::of_whole_channels(view, element_bytes, counts, tensors, tuning);
    const int64_t channel_bytes = view.outer * view.inner * element_bytes * tensors;
    // By planes alone, at least one channel must fit, and all threads must have work.
    const bool possible =
        Plan(view, element_bytes, counts, tuning).traversal() == Traversal::kPlanes &&
        channel_bytes <= tuning.whole_channel_bytes && view.channels >= tuning.task_multiple;
    ASSERT_EQ(plan.has_value(), possible);
    if (!plan) {
      ++refused;
      continue;
    }
    ++taken;
    EXPECT_EQ(plan->splits(), 1);
    EXPECT_GE(plan->size(), tuning.task_multiple);
    EXPECT_EQ(plan->traversal(), Traversal::kPlanes);
    for (int64_t t = 0; t < plan->size(); ++t) {
      const Task task = (*plan)[t];
      ASSERT_EQ(task.rows.size(), view.outer);
      ASSERT_EQ(task.inner.size(), view.inner);
      ASSERT_LE(task.channels.size(), tuning.max_plane_channels);
      ASSERT_LE(task.channels.size() * channel_bytes, tuning.whole_channel_bytes);
      of_several += task.channels.size() > 1;
    }
    for (const int count : visits(*plan)) {
      ASSERT_EQ(count, 1);
    }
    expect_cells_of_one_task_each(*plan);
  }
  EXPECT_GT(taken, 50);
  EXPECT_GT(refused, 50);
  EXPECT_GT(of_several, 50);
}

TEST(CpuPlan, FewOrLargeChannelsAndColumnsAreNotTakenWhole) {
  const OperationCounts counts = counts_of<Moments>();
  EXPECT_TRUE(Plan::of_whole_channels({4, 64, 100}, 4, counts, 2));
  EXPECT_FALSE(Plan::of_whole_channels({4, kTuning.task_multiple - 1, 100}, 4, counts, 2));
  EXPECT_FALSE(Plan::of_whole_channels({1 << 20, 64, 100}, 4, counts, 2));
  EXPECT_FALSE(Plan::of_whole_channels({100, 64, 1}, 4, counts, 2));
  EXPECT_FALSE(Plan::of_whole_channels({int64_t{1} << 32, 64, 100}, 4, counts, 2));
}

// ---- Past the caches ----------------------------------------------------------------------------

TEST(CpuPlan, OnlyWholeLinesOfLargeResultsBypassTheCaches) {
  const OperationCounts counts = counts_of<PreluForward>();
  alignas(64) static std::array<std::byte, 128> memory;
  std::byte* const line = memory.data();
  Tuning tuning;
  tuning.bypass_bytes = 4096 * 4;
  EXPECT_TRUE(Plan({1, 1, 4096}, 4, counts, tuning).should_bypass_caches(line));
  EXPECT_FALSE(Plan({1, 1, 4095}, 4, counts, tuning).should_bypass_caches(line));
  EXPECT_TRUE(Plan({1, 1, 4095}, 4, counts, tuning).writes_whole_lines(line));
  EXPECT_FALSE(Plan({1, 1, 4096}, 4, counts, tuning).should_bypass_caches(line + 4));
  EXPECT_FALSE(Plan({1, 1, 4096}, 4, counts, tuning).should_bypass_caches(nullptr));
  EXPECT_TRUE(Plan({9, 4, 160}, 4, counts, tuning).should_bypass_caches(line));
  EXPECT_TRUE(Plan({9, 4, 161}, 4, counts, tuning).should_bypass_caches(line));
  EXPECT_TRUE(Plan({99, 320, 1}, 4, counts, tuning).should_bypass_caches(line));
  EXPECT_FALSE(Plan({99, 333, 1}, 4, counts, tuning).should_bypass_caches(line));
  EXPECT_FALSE(Plan({1, 1, 4096}, 4, counts).should_bypass_caches(line));
}

TEST(CpuPlan, SoDoesAResultWhoseTensorsExceedTheLastLevelCache) {
  alignas(64) static std::array<std::byte, 64> memory;
  const auto bypasses = [](int64_t elements, const OperationCounts& counts) {
    Tuning tuning;
    tuning.last_level_bytes = 3 * 4096 * 4;
    return Plan({1, 1, elements}, 4, counts, tuning).should_bypass_caches(memory.data());
  };
  EXPECT_TRUE(bypasses(4096, counts_of<PreluBackward>()));
  EXPECT_FALSE(bypasses(4095, counts_of<PreluBackward>()));
  EXPECT_TRUE(bypasses(6144, counts_of<PreluForward>()));
  EXPECT_FALSE(bypasses(6143, counts_of<PreluForward>()));
}

// As much of a row as a task has elements: 5 of 100 channels of one row, not one channel of 5 rows.
TEST(CpuPlan, TasksBeyondTheCachesFollowMemory) {
  Tuning tuning;
  tuning.sum_task_elements = 5000;
  tuning.task_multiple = 1;
  tuning.min_chunk_bytes = 1;
  const ChannelView view{50, 100, 1000};
  const auto first_task = [&] { return Plan(view, 4, counts_of<PreluBackward>(), tuning)[0]; };
  tuning.max_tasks = 1000;
  EXPECT_EQ(first_task().rows.size(), 5);
  EXPECT_EQ(first_task().channels.size(), 1);
  tuning.last_level_bytes = 3 * view.numel() * 4;
  EXPECT_EQ(first_task().rows.size(), 1);
  EXPECT_EQ(first_task().channels.size(), 5);
}

TEST(CpuPlan, ColumnsAndShortPlanesAskForTheirInputsAhead) {
  const auto bytes_ahead = [](const ChannelView& view, int64_t element_bytes) {
    return Plan(view, element_bytes, counts_of<PreluBackward>()).prefetch_bytes();
  };
  const int64_t elements = kTuning.max_prefetched_plane_bytes / 4;
  EXPECT_EQ(bytes_ahead({100, 100, 1}, 4), kTuning.prefetch_bytes);
  EXPECT_EQ(bytes_ahead({100, 100, elements}, 4), kTuning.prefetch_bytes);
  EXPECT_EQ(bytes_ahead({100, 100, elements + 1}, 4), 0);
  EXPECT_EQ(bytes_ahead({100, 100, elements + 1}, 2), kTuning.prefetch_bytes);
}

TEST(LastLevelCache, IsReadAsLinuxDescribesIt) {
  const std::string folder = testing::TempDir();
  std::ofstream(folder + "/size") << "32768K\n";
  std::ofstream(folder + "/shared_cpu_map") << "00000001,000000f3\n";
  const LastLevelCache cache = last_level_cache(folder);
  EXPECT_EQ(cache.bytes, 32 << 20);
  EXPECT_EQ(cache.cores, 7);
  EXPECT_EQ(cache.usable_bytes(7), 28 << 20);
  EXPECT_EQ(cache.usable_bytes(8), 56 << 20);
}

TEST(LastLevelCache, IsUnknownWhereItIsNotDescribed) {
  const LastLevelCache cache = last_level_cache("/nonexistent");
  EXPECT_EQ(cache.bytes, 0);
  EXPECT_EQ(cache.cores, 1);
}

TEST(CpuPlan, RowsAreJoinedToWholePacksIfAThirdMoreColumnsDo) {
  const auto columns = [](int64_t channels) {
    return Plan({1 << 20, channels, 1}, 4, counts_of<PreluBackward>()).row_size();
  };
  EXPECT_EQ(columns(64), kTuning.max_joined);
  EXPECT_EQ(columns(150), 8 * 150);
  EXPECT_EQ(columns(170), 5 * 170);  // 8 are too many
}

TEST(CpuPlan, JoinedRowsAreWrittenInOnePiece) {
  alignas(64) static std::array<std::byte, 64> memory;
  const Plan plan({1 << 20, 20, 1}, 4, counts_of<PreluForward>());
  ASSERT_GT(plan.joined(), 1);
  ASSERT_EQ(plan.row_size() * 4 % kTuning.cache_line, 0);
  EXPECT_TRUE(plan.writes_whole_lines(memory.data()));
}

}  // namespace
}  // namespace torch_ext::cpu
