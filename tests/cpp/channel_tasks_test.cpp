// The division of work on the CPU: every element in exactly one task, whatever the sizes.
#include "kernels/cpu/channel_tasks.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace torch_ext::cpu {
namespace {

// Marks the elements of every task as the walkers read them.
std::vector<int> visits(const ChannelTasks& tasks) {
  const ChannelView& view = tasks.view();
  std::vector<int> count(view.numel());
  for (int64_t i = 0; i < tasks.size(); ++i) {
    const Task task = tasks[i];
    for (int64_t row = task.rows.first; row < task.rows.last; ++row) {
      for (int64_t j = 0; j < tasks.joined(); ++j) {
        for (int64_t c = task.channels.first; c < task.channels.last; ++c) {
          for (int64_t k = task.inner.first; k < task.inner.last; ++k) {
            const int64_t outer = row * tasks.joined() + j;
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

void expect_sound(const ChannelView& view, int64_t element_bytes, bool sums) {
  SCOPED_TRACE(
      testing::Message() << view.outer << " x " << view.channels << " x " << view.inner << ", "
                         << element_bytes << " bytes");
  const ChannelTasks tasks(view, element_bytes, sums);
  ASSERT_GE(tasks.size(), 1);
  ASSERT_GE(tasks.grain(), 1);
  for (const int count : visits(tasks)) {
    ASSERT_EQ(count, 1);
  }
  // No two tasks share a cell of the partial sums, and all cells are written.
  std::vector<int> cells(tasks.splits() * view.channels);
  for (int64_t i = 0; i < tasks.size(); ++i) {
    const Task task = tasks[i];
    ASSERT_LT(task.split, tasks.splits());
    for (int64_t c = task.channels.first; c < task.channels.last; ++c) {
      ++cells[task.split * view.channels + c];
    }
    if (tasks.walk() == Walk::planes) {
      if (sums) {
        ASSERT_LE(task.channels.size(), tuning::kMaxPlaneChannels);
      }
    } else {
      ASSERT_LE(
          tasks.joined() * task.channels.size() * view.inner,
          sums ? tuning::kMaxSumColumns : tuning::kMaxColumns);
      ASSERT_EQ(task.inner.size(), view.inner);
    }
  }
  for (const int count : cells) {
    ASSERT_EQ(count, 1);
  }
}

TEST(ChannelTasks, VisitEveryElementOnceForSmallSizes) {
  for (const int64_t outer : {1, 2, 3, 17, 100}) {
    for (const int64_t channels : {1, 2, 3, 7, 16, 24, 130}) {
      for (const int64_t inner : {1, 2, 5, 25, 49, 63, 64, 65, 200}) {
        for (const int64_t element_bytes : {2, 4, 8}) {
          expect_sound({outer, channels, inner}, element_bytes, true);
          expect_sound({outer, channels, inner}, element_bytes, false);
        }
      }
    }
  }
}

TEST(ChannelTasks, VisitEveryElementOnceForRandomSizes) {
  std::mt19937 random(7);
  const auto up_to = [&](int64_t most) { return 1 + static_cast<int64_t>(random() % most); };
  for (int i = 0; i < 200; ++i) {
    const int64_t inner = up_to(i % 2 == 0 ? 80 : 40000);
    const int64_t channels = up_to(std::max<int64_t>(1, std::min<int64_t>(3000, 300000 / inner)));
    expect_sound(
        {up_to(std::max<int64_t>(1, 300000 / inner / channels)), channels, inner}, 2 << i % 3,
        i % 5 != 0);
  }
}

// The memory that partial sums take, in elements of the input.
TEST(ChannelTasks, KeepPartialSumsFew) {
  const std::vector<ChannelView> views{
      {64, 256, 196},   {64, 512, 49},   {12544, 256, 1}, {401408, 24, 1}, {1, 1, 1 << 24},
      {128, 64, 12544}, {1 << 20, 3, 1}, {4096, 1000, 1}, {2, 32, 884736}, {128, 512, 64}};
  for (const ChannelView& view : views) {
    for (const int64_t element_bytes : {2, 4}) {
      const ChannelTasks tasks(view, element_bytes, true);
      EXPECT_LE(tasks.splits() * view.channels * 16, view.numel())
          << view.outer << " x " << view.channels << " x " << view.inner;
    }
  }
}

// Sizes past 2^32: nothing is narrowed on the way.
static_assert([] {
  const ChannelTasks tasks({int64_t{1} << 20, 4096, 4096}, 4, true);
  const Task last = tasks[tasks.size() - 1];
  return last.rows.last == int64_t{1} << 20 && last.channels.last == 4096 &&
         last.inner.last == 4096;
}());
static_assert([] {
  const ChannelTasks tasks({1, 1, int64_t{1} << 33}, 4, true);
  return tasks[tasks.size() - 1].inner.last == int64_t{1} << 33;
}());
static_assert(ChannelTasks({int64_t{1} << 32, 3, 1}, 4, true).row_size() < tuning::kMaxColumns);
static_assert(ChannelTasks({2, int64_t{1} << 31, 2}, 4, true).row_size() == int64_t{1} << 32);

}  // namespace
}  // namespace torch_ext::cpu
