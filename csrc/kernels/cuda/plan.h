// How a layout is distributed over the device: traversal, grid, block, splits of the sums and
// workspace. A pure function of sizes, an operation's counts, types' widths and device properties.
// Knows no CUDA, tensors or pointers.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <numeric>

#include "kernels/channel_view.h"
#include "kernels/cuda/traversal.h"
#include "kernels/cuda/tuning.h"
#include "kernels/operation.h"

namespace torch_ext::cuda {

inline constexpr int64_t kMaxGrid = INT32_MAX;

struct Device {
  int sm_count;
  int threads_per_sm;
  bool clusters;  // the GPU has them, and its code was compiled with them
};

// The work of a kernel.
struct Work {
  ChannelView view;
  OperationCounts counts;
  int element_bytes;
  int base;      // elements between the last 16-byte boundary and the first one of what is written
  bool shifted;  // another operand is aligned differently

  constexpr int pack() const { return kPackBytes / element_bytes; }
  constexpr bool has_sums() const { return counts.sums > 0; }
  // The bytes of the partials of one split: a value of the compute type for each sum of each
  // channel.
  constexpr int64_t partial_bytes() const {
    return view.channels * counts.sums * (element_bytes == 8 ? 8 : 4);
  }
  constexpr int64_t workspace_limit() const {
    const int64_t share = view.numel() * element_bytes / 8 + 4 * view.channels * counts.sums;
    return std::max(share, int64_t{4} << 20);
  }
};

struct LaunchPlan {
  Traversal traversal;
  PlaneTraversal planes;  // one of the two
  ColumnTraversal columns;
  int64_t grid;
  int threads;
  int cluster;  // blocks of a cluster; 1: none
  int64_t splits;
  int64_t workspace_bytes;  // the partials of all splits, ...

  constexpr bool has_second_kernel() const { return workspace_bytes > 0; }  // ... which adds them
};

// The second kernel, for split sums: a block has `width` channels side by side, with `lanes`
// threads each.
struct FinishPlan {
  int64_t channels;
  int64_t splits;
  int width;
  int lanes;
  int64_t grid;
  int threads;
};

constexpr int64_t power_of_two_below(int64_t n) {
  return static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(n)));
}

namespace plan_detail {

// The largest shift of a run's start, for runs that start at multiples of `pitch` elements.
constexpr int64_t max_shift(const Work& work, int64_t runs, int64_t pitch) {
  const int64_t common = std::gcd(int64_t{work.pack()}, pitch);
  return runs <= 1 ? work.base : work.pack() - common + work.base % common;
}

// Into how many splits to divide each of `groups` independent groups of `packs` visits for each
// thread. What one block or one cluster can do in reasonable time needs no second kernel.
constexpr Tasks split(
    const Work& work,
    const Tuning& tuning,
    const Device& device,
    int64_t groups,
    int threads,
    int64_t packs) {
  const int resident =
      std::max(std::min(tuning.resident_threads, device.threads_per_sm) / threads, 1);
  const int64_t wanted = ceil_div(int64_t{tuning.waves} * resident * device.sm_count, groups);
  if (!work.has_sums()) {
    return {groups, std::clamp(wanted, int64_t{1}, packs), false};
  }
  const int64_t useful = ceil_div(packs, int64_t{tuning.packs_per_thread});
  const int64_t cluster = device.clusters ? tuning.cluster : 1;
  if (packs <= cluster * tuning.packs_unsplit) {
    const int64_t splits = power_of_two_below(std::min({wanted, cluster, useful}));
    return {groups, splits, splits > 1};
  }
  const int64_t allowed = work.workspace_limit() / work.partial_bytes();
  return {groups, std::max(std::min({wanted, allowed, useful}), int64_t{1}), false};
}

constexpr int block_size(int64_t packs, const Tuning& tuning) {
  return static_cast<int>(std::min(round_up(packs, int64_t{kWarp}), int64_t{tuning.threads}));
}

constexpr Memory memory_of(const Work& work) {
  return {work.view.numel(), work.base, work.shifted ? work.pack() : 0};
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
  PlaneTraversal traversal{};
  traversal.memory = memory_of(work);
  traversal.inner = view.inner;
  traversal.packs_per_plane = ceil_div(view.inner + shift, int64_t{work.pack()});
  traversal.packs_per_channel = view.outer * traversal.packs_per_plane;
  traversal.threads = block_size(traversal.packs_per_channel, tuning);

  const int64_t threads = traversal.threads;
  const int64_t visits = ceil_div(traversal.packs_per_channel, threads);
  traversal.tasks = split(work, tuning, device, view.channels, traversal.threads, visits);
  traversal.packs_per_split = ceil_div(visits, traversal.tasks.splits) * threads;
  if (!traversal.tasks.clustered) {  // a cluster may have an idle block
    traversal.tasks.splits = ceil_div(traversal.packs_per_channel, traversal.packs_per_split);
  }

  LaunchPlan plan{};
  plan.traversal = Traversal::kPlanes;
  plan.planes = traversal;
  launch_tasks(traversal.tasks, traversal.threads, plan);
  return plan;
}

// The number of channels whose multiples fill whole packs, wherever they start: the unit of a
// segment's size.
constexpr int64_t channels_of_packs(const Work& work) {
  return work.pack() / std::gcd(int64_t{work.pack()}, work.view.inner);
}

// The matrix of a column traversal: how many rows of the tensor make one, and its segments.
constexpr void shape_columns(const Work& work, int threads, ColumnTraversal& traversal) {
  const ChannelView& view = work.view;
  const int64_t pack = work.pack();
  const int64_t length = view.channels * view.inner;
  const int64_t aligned_rows = pack / std::gcd(pack, length);
  const int64_t room = (threads - (work.base != 0 ? 1 : 0)) * pack;

  int64_t merged = round_down(room / length, aligned_rows);
  merged = std::min(merged, round_up(view.outer, aligned_rows));
  if (view.outer * length <= room) {
    merged = view.outer;
  } else if (merged == 0) {  // as many as leave few different alignments
    merged = power_of_two_below(std::max((threads - 1) * pack / length, int64_t{1}));
  }
  traversal.segment_channels = view.channels;
  if (length > (threads - 1) * pack) {
    const bool shifts = work.base != 0 || aligned_rows > 1;
    const int64_t unit = channels_of_packs(work);
    const int64_t most = round_down((threads - (shifts ? 1 : 0)) * pack / view.inner, unit);
    if (view.channels > most && most > 0) {
      const int64_t segments = ceil_div(view.channels, most);
      traversal.segment_channels = round_up(ceil_div(view.channels, segments), unit);
    }
  }
  traversal.tasks.groups = ceil_div(view.channels, traversal.segment_channels);
  traversal.row_length = merged * length;
  traversal.rows = ceil_div(view.outer, merged);
  traversal.period = static_cast<int32_t>(std::min(length, threads * pack));
}

constexpr LaunchPlan plan_columns(const Work& work, const Tuning& tuning, const Device& device) {
  ColumnTraversal traversal{};
  traversal.memory = memory_of(work);
  traversal.channels = work.view.channels;
  traversal.inner = static_cast<int32_t>(work.view.inner);
  shape_columns(work, tuning.threads, traversal);

  const int64_t pack = work.pack();
  const int64_t shift = max_shift(work, traversal.rows, traversal.row_length);
  const int threads = block_size(ceil_div(traversal.width(0) + shift, pack), tuning);

  // All rows of a pass must be aligned alike: splits * passes is a multiple of `classes`.
  const int64_t classes = traversal.rows > 1 ? pack / std::gcd(pack, traversal.row_length) : 1;
  traversal.tasks = split(work, tuning, device, traversal.tasks.groups, threads, traversal.rows);
  int64_t& splits = traversal.tasks.splits;
  splits = splits >= classes ? round_down(splits, classes) : power_of_two_below(splits);
  traversal.passes = static_cast<int32_t>(std::max(classes / splits, int64_t{1}));

  LaunchPlan plan{};
  plan.traversal = Traversal::kColumns;
  plan.columns = traversal;
  launch_tasks(traversal.tasks, threads, plan);
  return plan;
}

// Short runs, as long as a segment of them fits a block.
constexpr bool takes_columns(const Work& work, const Tuning& tuning) {
  const int64_t channels = std::min(channels_of_packs(work), work.view.channels);
  return work.view.inner * work.element_bytes <= tuning.run_bytes &&
         work.view.inner * channels <= (tuning.threads - 1) * work.pack();
}

}  // namespace plan_detail

// For at least one element.
constexpr LaunchPlan plan_launch(const Work& work, const Tuning& wanted, const Device& device) {
  Tuning tuning = wanted;
  tuning.threads = std::min(wanted.threads, max_threads(work.counts));
  LaunchPlan plan = plan_detail::takes_columns(work, tuning)
                        ? plan_detail::plan_columns(work, tuning, device)
                        : plan_detail::plan_planes(work, tuning, device);
  if (work.has_sums() && plan.splits > plan.cluster) {
    plan.workspace_bytes = plan.splits * work.partial_bytes();
  }
  return plan;
}

constexpr FinishPlan plan_finish(int64_t channels, int64_t splits) {
  constexpr int64_t kLoadsPerLane = 8;
  constexpr int64_t kSector = 8;  // partial sums that one memory transaction reads
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
