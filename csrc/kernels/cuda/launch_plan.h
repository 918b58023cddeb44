// How a layout is spread over the device: traversal, grid, block, splits of the sums and workspace.
// A pure function of sizes, types' widths and device properties. Knows no CUDA, tensors or
// pointers.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <numeric>

#include "kernels/channel_view.h"
#include "kernels/cuda/walk.h"

namespace torch_ext::cuda {

inline constexpr int kWarp = 32;
inline constexpr int kMaxThreads = 256;  // of a walker's block; kernels size shared memory by it
inline constexpr int kMaxFinishThreads = 512;  // of a finishing block
inline constexpr int64_t kMaxGrid = INT32_MAX;

struct Tuning {
  int arch;              // compute capability * 10; a row holds from this one to the next
  int threads;           // of a block; at most kMaxThreads
  int resident_threads;  // per SM that registers allow, in round figures
  int waves;             // blocks wanted, in multiples of what is resident at once
  int slots_per_thread;  // at least so many for each split of a sum, ...
  int slots_unsplit;     // ... and up to so many without a second kernel
  int cluster;           // most blocks of a cluster, a power of two up to the portable 8; 1: none
  int run_bytes;         // longest run of a slope that is walked by columns
};

// First guesses, from bytes in flight and occupancy. What measurements change goes here.
inline constexpr Tuning kTuning[] = {
    {0, 256, 768, 4, 8, 16, 1, 512},    // Turing, Ampere, Ada
    {90, 256, 768, 4, 4, 64, 8, 512},   // Hopper
    {100, 256, 768, 4, 4, 64, 8, 512},  // Blackwell
};

constexpr Tuning tuning_of(int arch) {
  Tuning found = kTuning[0];
  for (const Tuning& row : kTuning) {
    found = row.arch <= arch ? row : found;
  }
  return found;
}

struct Device {
  int sm_count;
  int threads_per_sm;
  bool clusters;  // it has them, and so has the code that was built for it
};

// What a kernel is asked to do.
struct Work {
  ChannelView view;
  int element_bytes;
  int sum_bytes;  // of one partial sum
  int base;       // elements between the last 16-byte boundary and the grid operand's first element
  bool shifted;   // another operand is aligned differently
  bool reduces;

  constexpr int vector() const { return kVectorBytes / element_bytes; }
};

enum class Traversal { kPlanes, kColumns };

struct LaunchPlan {
  Traversal traversal;
  PlaneWalk planes;  // one of the two
  ColumnWalk columns;
  int64_t grid;
  int threads;
  int cluster;  // blocks of a cluster; 1: none
  int64_t splits;
  int64_t workspace_bytes;  // partial sums, a row of channels for each split, ...

  constexpr bool has_second_kernel() const { return workspace_bytes > 0; }  // ... which adds them
};

// The second kernel of a split sum: `width` channels of a block side by side, `lanes` threads each.
struct FinishPlan {
  int64_t channels;
  int64_t splits;
  int width;
  int lanes;
  int64_t grid;
  int threads;
};

template <typename T>
constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

template <typename T>
constexpr T round_up(T a, T b) {
  return ceil_div(a, b) * b;
}

template <typename T>
constexpr T round_down(T a, T b) {
  return a / b * b;
}

constexpr int64_t power_of_two_below(int64_t n) {
  return static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(n)));
}

constexpr int64_t workspace_limit(const ChannelView& view, int element_bytes) {
  return std::max(view.numel() * element_bytes / 8 + 4 * view.channels, int64_t{4} << 20);
}

namespace plan_detail {

// The largest shift of a run's start, for runs that start at multiples of `pitch` elements.
constexpr int64_t max_shift(const Work& work, int64_t runs, int64_t pitch) {
  const int64_t step = std::gcd(int64_t{work.vector()}, pitch);
  return runs <= 1 ? work.base : work.vector() - step + work.base % step;
}

// Into how many splits to cut `groups` independent ones of `slots` visits for each thread. What one
// block or one cluster can do in reasonable time has no second kernel.
constexpr Tasks split(
    const Work& work,
    const Tuning& tuning,
    const Device& device,
    int64_t groups,
    int threads,
    int64_t slots) {
  const int resident =
      std::max(std::min(tuning.resident_threads, device.threads_per_sm) / threads, 1);
  const int64_t wanted = ceil_div(int64_t{tuning.waves} * resident * device.sm_count, groups);
  if (!work.reduces) {
    return {groups, std::clamp(wanted, int64_t{1}, slots), false};
  }
  const int64_t useful = ceil_div(slots, int64_t{tuning.slots_per_thread});
  const int64_t cluster = device.clusters ? tuning.cluster : 1;
  if (slots <= cluster * tuning.slots_unsplit) {
    const int64_t splits = power_of_two_below(std::min({wanted, cluster, useful}));
    return {groups, splits, splits > 1};
  }
  const int64_t row_bytes = work.view.channels * work.sum_bytes;
  const int64_t allowed = workspace_limit(work.view, work.element_bytes) / row_bytes;
  return {groups, std::max(std::min({wanted, allowed, useful}), int64_t{1}), false};
}

constexpr int block_size(int64_t slots, const Tuning& tuning) {
  return static_cast<int>(std::min(round_up(slots, int64_t{kWarp}), int64_t{tuning.threads}));
}

constexpr Memory memory_of(const Work& work) {
  return {work.view.numel(), work.base, work.shifted ? work.vector() : 0};
}

constexpr void launch_tasks(const Tasks& tasks, int threads, LaunchPlan& plan) {
  plan.threads = threads;
  plan.cluster = tasks.clustered ? static_cast<int>(tasks.splits) : 1;
  plan.splits = tasks.splits;
  plan.grid = std::min(tasks.count(), kMaxGrid);
}

constexpr LaunchPlan plan_planes(const Work& work, const Tuning& tuning, const Device& device) {
  const ChannelView& view = work.view;
  const int64_t shift = max_shift(work, view.outer * view.channels, view.inner);
  PlaneWalk walk{};
  walk.memory = memory_of(work);
  walk.inner = view.inner;
  walk.slots_per_plane = ceil_div(view.inner + shift, int64_t{work.vector()});
  walk.slots_per_channel = view.outer * walk.slots_per_plane;
  walk.threads = block_size(walk.slots_per_channel, tuning);

  const int64_t threads = walk.threads;
  const int64_t visits = ceil_div(walk.slots_per_channel, threads);
  walk.tasks = split(work, tuning, device, view.channels, walk.threads, visits);
  walk.slots_per_split = ceil_div(visits, walk.tasks.splits) * threads;
  if (!walk.tasks.clustered) {  // a cluster may have an idle block
    walk.tasks.splits = ceil_div(walk.slots_per_channel, walk.slots_per_split);
  }

  LaunchPlan plan{};
  plan.traversal = Traversal::kPlanes;
  plan.planes = walk;
  launch_tasks(walk.tasks, walk.threads, plan);
  return plan;
}

// Channels that start at boundaries whatever their number: the step of a segment's size.
constexpr int64_t channel_step(const Work& work) {
  return work.vector() / std::gcd(int64_t{work.vector()}, work.view.inner);
}

// The matrix of a column-wise walk: how many rows of the tensor make one, and its segments.
constexpr void shape_columns(const Work& work, int threads, ColumnWalk& walk) {
  const ChannelView& view = work.view;
  const int64_t vector = work.vector();
  const int64_t length = view.channels * view.inner;
  const int64_t aligned_rows = vector / std::gcd(vector, length);
  const int64_t room = (threads - (work.base != 0 ? 1 : 0)) * vector;

  int64_t merged = round_down(room / length, aligned_rows);
  merged = std::min(merged, round_up(view.outer, aligned_rows));
  if (view.outer * length <= room) {
    merged = view.outer;
  } else if (merged == 0) {  // as many as leave few alignments to take turns
    merged = power_of_two_below(std::max((threads - 1) * vector / length, int64_t{1}));
  }
  walk.segment_channels = view.channels;
  if (length > (threads - 1) * vector) {
    const bool shifts = work.base != 0 || aligned_rows > 1;
    const int64_t step = channel_step(work);
    const int64_t most = round_down((threads - (shifts ? 1 : 0)) * vector / view.inner, step);
    if (view.channels > most && most > 0) {
      const int64_t segments = ceil_div(view.channels, most);
      walk.segment_channels = round_up(ceil_div(view.channels, segments), step);
    }
  }
  walk.tasks.groups = ceil_div(view.channels, walk.segment_channels);
  walk.row_length = merged * length;
  walk.rows = ceil_div(view.outer, merged);
  walk.period = static_cast<int32_t>(std::min(length, threads * vector));
}

constexpr LaunchPlan plan_columns(const Work& work, const Tuning& tuning, const Device& device) {
  ColumnWalk walk{};
  walk.memory = memory_of(work);
  walk.channels = work.view.channels;
  walk.inner = static_cast<int32_t>(work.view.inner);
  shape_columns(work, tuning.threads, walk);

  const int64_t vector = work.vector();
  const int64_t shift = max_shift(work, walk.rows, walk.row_length);
  const int threads = block_size(ceil_div(walk.width(0) + shift, vector), tuning);

  // All rows of a pass must be aligned alike: splits * passes is a multiple of `classes`.
  const int64_t classes = walk.rows > 1 ? vector / std::gcd(vector, walk.row_length) : 1;
  walk.tasks = split(work, tuning, device, walk.tasks.groups, threads, walk.rows);
  int64_t& splits = walk.tasks.splits;
  splits = splits >= classes ? round_down(splits, classes) : power_of_two_below(splits);
  walk.passes = static_cast<int32_t>(std::max(classes / splits, int64_t{1}));

  LaunchPlan plan{};
  plan.traversal = Traversal::kColumns;
  plan.columns = walk;
  launch_tasks(walk.tasks, threads, plan);
  return plan;
}

// Short runs; as long as a segment of them fits a block.
constexpr bool walks_columns(const Work& work, const Tuning& tuning) {
  const int64_t channels = std::min(channel_step(work), work.view.channels);
  return work.view.inner * work.element_bytes <= tuning.run_bytes &&
         work.view.inner * channels <= (tuning.threads - 1) * work.vector();
}

}  // namespace plan_detail

// For at least one element.
constexpr LaunchPlan plan_launch(const Work& work, const Tuning& tuning, const Device& device) {
  LaunchPlan plan = plan_detail::walks_columns(work, tuning)
                        ? plan_detail::plan_columns(work, tuning, device)
                        : plan_detail::plan_planes(work, tuning, device);
  if (work.reduces && plan.splits > plan.cluster) {
    plan.workspace_bytes = plan.splits * work.view.channels * work.sum_bytes;
  }
  return plan;
}

constexpr FinishPlan plan_finish(int64_t channels, int64_t splits) {
  constexpr int64_t kLoadsPerLane = 8;
  constexpr int64_t kSector = 8;  // partial sums that memory delivers together
  const auto power_of_two = [](int64_t n) {
    return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(n)));
  };
  const int64_t widest = power_of_two(std::min(channels, int64_t{kMaxFinishThreads}));
  const int64_t most = kMaxFinishThreads / std::min(widest, kSector);
  const int64_t lanes = std::min(power_of_two(ceil_div(splits, kLoadsPerLane)), most);
  const int64_t width = std::min(widest, kMaxFinishThreads / lanes);

  FinishPlan plan{};
  plan.channels = channels;
  plan.splits = splits;
  plan.width = static_cast<int>(width);
  plan.lanes = static_cast<int>(lanes);
  plan.grid = std::min(ceil_div(channels, width), kMaxGrid);
  plan.threads = static_cast<int>(round_up(width * lanes, int64_t{kWarp}));
  return plan;
}

}  // namespace torch_ext::cuda
