// The CUDA launch plan as a property: whatever the layout, type, alignment and device, every
// element is visited exactly once, by the right channel, with 128-bit accesses only where they are
// allowed, and grid, block and workspace keep their limits.
#include "kernels/cuda/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

namespace torch_ext::cuda {
namespace {

// What the random cases have met, so that none of the properties holds for want of a case.
struct Seen {
  int64_t planes, columns, merged_rows, segments, passes, split, clustered, unsplit, parts, shifted,
      clamped;
};

struct Visit {
  std::vector<int> count;
  const ChannelView view;
};

void visit(
    Visit& visit,
    const Work& work,
    const PackPlace& place,
    int64_t channel_of_place,
    const int32_t* channels) {
  ASSERT_LE(0, place.begin);
  ASSERT_LE(place.end, work.pack());
  if (place.whole) {
    ASSERT_EQ((place.position + work.base) % work.pack(), 0);
    const int64_t guard = work.shifted ? work.pack() : 0;
    ASSERT_GE(place.position, guard);
    ASSERT_LE(place.position + work.pack() + guard, visit.view.numel());
    ASSERT_EQ(place.begin, 0);
    ASSERT_EQ(place.end, work.pack());
  }
  for (int i = place.begin; i < place.end; ++i) {
    const int64_t position = place.position + i;
    ASSERT_GE(position, 0);
    ASSERT_LT(position, visit.view.numel());
    ++visit.count[position];
    const int64_t channel = channels == nullptr ? channel_of_place : channel_of_place + channels[i];
    ASSERT_EQ(channel, position / visit.view.inner % visit.view.channels);
  }
}

template <int kPack>
void visit_planes(const Work& work, const LaunchPlan& plan, Visit& seen, Seen& branches) {
  const PlaneTraversal& traversal = plan.planes;
  for (int64_t task = 0; task < traversal.tasks.count(); ++task) {
    for (int thread = 0; thread < plan.threads; ++thread) {
      PlaneCursor cursor = first_cursor(traversal, task, thread);
      while (!done(cursor)) {
        const PackPlace place = next_place<kPack>(traversal, cursor);
        branches.parts += !place.whole && !place.empty();
        visit(seen, work, place, traversal.tasks.group_of(task), nullptr);
      }
      ASSERT_TRUE(next_place<kPack>(traversal, cursor).empty());
    }
  }
}

template <int kPack>
void visit_columns(const Work& work, const LaunchPlan& plan, Visit& seen, Seen& branches) {
  const ColumnTraversal& traversal = plan.columns;
  for (int64_t task = 0; task < traversal.tasks.count(); ++task) {
    for (int pass = 0; pass < traversal.passes; ++pass) {
      int owned = 0;
      for (int thread = 0; thread < plan.threads; ++thread) {
        ColumnCursor cursor = first_cursor<kPack>(traversal, task, pass, thread);
        owned += std::max(cursor.end - cursor.begin, 0);
        int32_t channels[kPack];
        pack_channels(traversal, cursor, channels);
        while (!done(cursor)) {
          const PackPlace place = next_place<kPack>(traversal, cursor);
          branches.parts += !place.whole && !place.empty();
          visit(seen, work, place, traversal.first_channel(task), channels);
        }
        ASSERT_TRUE(next_place<kPack>(traversal, cursor).empty());
      }
      ASSERT_EQ(
          owned, traversal.width(task));  // each column of shared memory is written by one thread
    }
    ASSERT_LE(traversal.width(task), max_threads(work.counts) * kPack);  // shared memory's columns
    ASSERT_EQ(traversal.width(task) % traversal.inner, 0);
  }
}

void check_limits(const Work& work, const LaunchPlan& plan) {
  const bool planes = plan.traversal == Traversal::kPlanes;
  const Tasks& tasks = planes ? plan.planes.tasks : plan.columns.tasks;
  ASSERT_GE(plan.grid, 1);
  ASSERT_LE(plan.grid, INT32_MAX);
  ASSERT_LE(plan.grid, tasks.count());
  ASSERT_TRUE(plan.grid == tasks.count() || plan.grid == INT32_MAX);
  ASSERT_GE(plan.threads, 32);
  ASSERT_LE(plan.threads, max_threads(work.counts));
  ASSERT_EQ(plan.threads % 32, 0);
  ASSERT_GE(plan.splits, 1);
  const int64_t input = work.view.numel() * work.element_bytes;
  const int64_t values = work.view.channels * work.counts.sums;
  ASSERT_LE(plan.workspace_bytes, std::max(input / 8 + 4 * values, int64_t{4} << 20));
  ASSERT_EQ(plan.splits, tasks.splits);
  const bool sums_split = work.has_sums() && plan.splits > 1 && !tasks.clustered;
  const int64_t value = work.element_bytes == 8 ? 8 : 4;
  ASSERT_EQ(plan.workspace_bytes, sums_split ? plan.splits * values * value : 0);
  if (planes) {
    const PlaneTraversal& traversal = plan.planes;
    ASSERT_EQ(traversal.packs_per_split % plan.threads, 0);
    ASSERT_GE(tasks.splits * traversal.packs_per_split, traversal.packs_per_channel);
    if (!tasks.clustered) {
      ASSERT_LT(
          (tasks.splits - 1) * traversal.packs_per_split,
          traversal.packs_per_channel);  // none is idle
    }
  } else {
    const ColumnTraversal& traversal = plan.columns;
    ASSERT_GE(traversal.rows * traversal.row_length, work.view.numel());
    ASSERT_LT((traversal.rows - 1) * traversal.row_length, work.view.numel());
    ASSERT_LE(tasks.splits, traversal.rows);
    ASSERT_GE(tasks.groups * traversal.segment_channels, work.view.channels);
    ASSERT_TRUE(
        traversal.rows == 1 || traversal.stride() * traversal.row_length % work.pack() == 0);
  }
}

// The blocks of a cluster are the splits of one group, and nobody else's.
void check_clusters(const Work& work, const LaunchPlan& plan, const Device& device) {
  const Tasks& tasks =
      plan.traversal == Traversal::kPlanes ? plan.planes.tasks : plan.columns.tasks;
  ASSERT_EQ(plan.cluster, tasks.clustered ? tasks.splits : 1);
  if (plan.cluster == 1) {
    return;
  }
  ASSERT_TRUE(work.has_sums() && device.clusters);
  ASSERT_TRUE(plan.cluster == 2 || plan.cluster == 4 || plan.cluster == 8);  // portable sizes
  ASSERT_EQ(plan.grid, tasks.count());
  for (int64_t task = 0; task < std::min(tasks.count(), int64_t{64}); ++task) {
    ASSERT_EQ(tasks.group_of(task), task / plan.cluster);
    ASSERT_EQ(tasks.split_of(task), task % plan.cluster);
  }
}

void check(const Work& work, const Tuning& tuning, const Device& device, Seen& seen) {
  SCOPED_TRACE(
      testing::Message() << work.view.outer << " x " << work.view.channels << " x "
                         << work.view.inner << ", element " << work.element_bytes << ", base "
                         << work.base << ", shifted " << work.shifted << ", sums "
                         << work.counts.sums << ", threads " << tuning.threads);
  const LaunchPlan plan = plan_launch(work, tuning, device);
  check_limits(work, plan);
  check_clusters(work, plan, device);
  const bool planes = plan.traversal == Traversal::kPlanes;
  seen.planes += planes;
  seen.columns += !planes;
  seen.merged_rows += !planes && plan.columns.row_length > work.view.channels * work.view.inner;
  seen.segments += !planes && plan.columns.tasks.groups > 1;
  seen.passes += !planes && plan.columns.passes > 1;
  seen.split += plan.splits > plan.cluster;
  seen.clustered += plan.cluster > 1;
  seen.unsplit += plan.splits == 1;
  seen.shifted += work.shifted;
  seen.clamped += plan.grid == INT32_MAX;
  if (work.view.numel() > 4096) {
    return;
  }
  Visit elements{std::vector<int>(work.view.numel()), work.view};
  const auto visit_all = [&]<int kPack>() {
    if (planes) {
      visit_planes<kPack>(work, plan, elements, seen);
    } else {
      visit_columns<kPack>(work, plan, elements, seen);
    }
  };
  if (work.pack() == 2) {
    visit_all.template operator()<2>();
  } else if (work.pack() == 4) {
    visit_all.template operator()<4>();
  } else {
    visit_all.template operator()<8>();
  }
  ASSERT_TRUE(std::ranges::all_of(elements.count, [](int count) { return count == 1; }));
}

class Random {
 public:
  int64_t upto(int64_t most) { return std::uniform_int_distribution<int64_t>(1, most)(engine_); }
  bool coin() { return upto(2) == 1; }
  template <typename T>
  T any(std::initializer_list<T> values) {
    return values.begin()[upto(static_cast<int64_t>(values.size())) - 1];
  }
  // Small numbers more often than large ones.
  int64_t size(int64_t most) { return upto(upto(most)); }

 private:
  std::mt19937_64 engine_{20150206};
};

Work random_work(Random& random, int64_t numel) {
  Work work{};
  work.view.inner =
      random.any({int64_t{1}, random.size(std::min(numel, int64_t{64})), random.size(numel)});
  work.view.channels = random.size(std::max(numel / work.view.inner, int64_t{1}));
  work.view.outer = random.size(std::max(numel / work.view.inner / work.view.channels, int64_t{1}));
  work.element_bytes = random.any({2, 4, 8});
  work.base = random.coin() ? 0 : static_cast<int>(random.upto(work.pack()) - 1);
  work.shifted = random.upto(4) == 1;
  work.counts = {2, 1, 1, random.any({0, 0, 1, 1, 2, 3})};
  return work;
}

Tuning random_tuning(Random& random) {
  Tuning tuning = kTuning[0];
  tuning.threads = random.any({32, 64, 256});
  tuning.waves = random.any({1, 4, 64});
  tuning.packs_per_thread = random.any({1, 8});
  tuning.packs_unsplit = random.any({0, 2, 16});
  tuning.cluster = random.any({1, 2, 8});
  tuning.run_bytes = random.any({16, 64, 512});
  return tuning;
}

TEST(LaunchPlan, VisitsEveryElementOnce) {
  Random random;
  Seen seen{};
  for (int i = 0; i < 100000 && !testing::Test::HasFatalFailure(); ++i) {
    const Work work = random_work(random, random.any({40, 300, 1500}));
    const Device device{random.any({1, 4, 132}), random.any({1536, 2048}), random.coin()};
    check(work, random_tuning(random), device, seen);
  }
  EXPECT_GT(seen.planes, 1000);
  EXPECT_GT(seen.columns, 1000);
  EXPECT_GT(seen.merged_rows, 1000);
  EXPECT_GT(seen.segments, 1000);
  EXPECT_GT(seen.passes, 1000);
  EXPECT_GT(seen.split, 1000);
  EXPECT_GT(seen.clustered, 500);
  EXPECT_GT(seen.unsplit, 1000);
  EXPECT_GT(seen.parts, 1000);
  EXPECT_GT(seen.shifted, 1000);
}

TEST(LaunchPlan, KeepsItsLimitsAtAnySize) {
  Random random;
  Seen seen{};
  for (int i = 0; i < 100000 && !testing::Test::HasFatalFailure(); ++i) {
    const Work work = random_work(random, int64_t{1} << random.upto(44));
    check(work, tuning_of(random.any({75, 80, 86, 90, 100, 120})), {132, 2048, true}, seen);
  }
  EXPECT_GT(seen.planes, 1000);
  EXPECT_GT(seen.columns, 1000);
  EXPECT_GT(seen.split, 1000);
}

TEST(LaunchPlan, KeepsItsLimitsAtBoundaries) {
  Seen seen{};
  const int64_t sizes[] = {
      1,
      2,
      3,
      7,
      8,
      9,
      31,
      32,
      49,
      255,
      256,
      257,
      65535,
      65536,
      100000000,
      (int64_t{1} << 31) - 1,
      (int64_t{1} << 31) + 1,
      (int64_t{1} << 32) + 1};
  for (const int64_t outer : sizes) {
    for (const int64_t channels : sizes) {
      for (const int64_t inner : sizes) {
        if (static_cast<__int128>(outer) * channels * inner > (int64_t{1} << 48)) {
          continue;
        }
        for (const int element : {2, 4, 8}) {
          for (const int sums : {0, 1, 3}) {
            const Work work{{outer, channels, inner}, {2, 1, 1, sums}, element, 0, false};
            check(work, tuning_of(90), {132, 2048, true}, seen);
            ASSERT_FALSE(testing::Test::HasFatalFailure());
          }
        }
      }
    }
  }
  EXPECT_GT(seen.clamped, 0);
}

// The last elements of layouts beyond 2^31 and 2^32, found from the last task on.
TEST(LaunchPlan, ReachesTheEndOfHugeTensors) {
  const int64_t huge = (int64_t{1} << 33) + 5;
  for (const ChannelView view :
       {ChannelView{1, 1, huge}, {3, 1, huge}, {huge, 3, 1}, {3, huge, 1}, {huge / 49, 5, 49}}) {
    const Work work{view, {2, 1, 1, 1}, 2, 0, false};
    const LaunchPlan plan = plan_launch(work, tuning_of(90), {132, 2048, true});
    int64_t last = 0;
    for (int thread = 0; thread < plan.threads; ++thread) {
      if (plan.traversal == Traversal::kPlanes) {
        for (PlaneCursor cursor = first_cursor(plan.planes, plan.planes.tasks.count() - 1, thread);
             !done(cursor);) {
          const PackPlace place = next_place<8>(plan.planes, cursor);
          last = place.empty() ? last : std::max(last, place.position + place.end);
        }
      } else {
        const ColumnTraversal& traversal = plan.columns;
        const int64_t tasks = traversal.tasks.count();
        for (int64_t task = std::max(tasks - 4096, int64_t{0}); task < tasks; ++task) {
          for (int pass = 0; pass < traversal.passes; ++pass) {
            ColumnCursor cursor = first_cursor<8>(traversal, task, pass, thread);
            const int64_t more = cursor.rows > 0 ? (cursor.rows - 1) / cursor.stride : 0;
            cursor.position += more * cursor.hop;
            cursor.rows -= more * cursor.stride;
            const PackPlace place = next_place<8>(traversal, cursor);
            last = place.empty() ? last : std::max(last, place.position + place.end);
          }
        }
      }
    }
    EXPECT_EQ(last, view.numel());
  }
}

}  // namespace
}  // namespace torch_ext::cuda
