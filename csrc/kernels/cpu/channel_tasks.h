// How a dense tensor is cut into tasks for the CPU walkers: a pure function of its sizes, never of
// the number of threads, so that sums have the same bits whoever runs which task. Knows no threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "kernels/channel_view.h"

namespace torch_ext::cpu {

// The two ways to walk memory.
//   planes   runs of one slope are long: broadcast the slope, walk the run
//   columns  runs are short: rows of columns, each column with its own slope, in registers
enum class Walk { planes, columns };

struct Range {
  int64_t first;
  int64_t last;

  constexpr int64_t size() const { return last - first; }
  bool operator==(const Range&) const = default;
};

// A box of work: all combinations of rows x channels x inner positions.
struct Task {
  Range rows;
  Range channels;
  Range inner;
  int64_t split;  // which row of partial sums it owns (for its channels)
};

namespace tuning {
// Tasks.
inline constexpr int64_t kThreadElements = 32768;   // worth waking another thread for
inline constexpr int64_t kTaskElements = 16384;     // of a task, about; ...
inline constexpr int64_t kSumTaskElements = 32768;  // ... with sums, which each task pays for
inline constexpr int64_t kTaskMultiple = 8;         // of tasks, for equal shares of few threads
inline constexpr int64_t kMaxTasks = 256;           // larger tensors get larger tasks, not more
// Planes.
inline constexpr int64_t kMinPlane = 24;           // shorter runs are walked as columns,
inline constexpr int64_t kMinPlane16Bit = 128;     // later where a vector holds twice as many
inline constexpr int64_t kFewRows = 4;             // too few to spread slopes for, unless runs ...
inline constexpr int64_t kTinyPlane = 16;          // ... are shorter than this
inline constexpr int64_t kMaxPlaneChannels = 128;  // running sums a task keeps at hand
inline constexpr int64_t kMinChunk = 4096;  // neighbours to touch before jumping to the next row
// Columns.
inline constexpr int64_t kMaxColumns = 16384;           // slopes a task keeps at hand,
inline constexpr int64_t kMaxSumColumns = 4096;         // and if it has sums for them as well,
inline constexpr int64_t kMaxSumColumnsInCache = 2048;  // and memory is not the limit
inline constexpr int64_t kMaxJoined = 960;              // columns of narrow rows that are joined
inline constexpr int64_t kColumnAlignment = 16;         // lanes of the widest step
inline constexpr int64_t kMinSumRows = 64;
// Memory, in bytes.
inline constexpr int64_t kCacheLine = 64;
inline constexpr int64_t kCacheBytes = 8 << 20;    // a tensor of more is not found in caches
inline constexpr int64_t kBypassBytes = 32 << 20;  // a result of more would empty them
}  // namespace tuning

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Blocks of nearly equal size, none larger than `largest`.
constexpr int64_t even_block(int64_t total, int64_t largest) {
  return ceil_div(total, ceil_div(total, std::clamp<int64_t>(largest, 1, total)));
}

class ChannelTasks {
 public:
  // `view` must not be empty. Tasks that sum are shaped for few partial sums, others follow memory.
  constexpr ChannelTasks(const ChannelView& view, int64_t element_bytes, bool sums)
      : view_(view), element_bytes_(element_bytes) {
    const bool few_rows = view.outer < tuning::kFewRows && view.inner >= tuning::kTinyPlane;
    const int64_t min_plane = element_bytes == 2 ? tuning::kMinPlane16Bit : tuning::kMinPlane;
    if (view.inner >= min_plane || view.channels == 1 || few_rows) {
      plan_planes(sums);
    } else {
      plan_columns(sums);
    }
    row_blocks_ = ceil_div(rows_, row_block_);
    channel_blocks_ = ceil_div(view.channels, channel_block_);
    inner_blocks_ = ceil_div(view.inner, inner_block_);
  }

  constexpr const ChannelView& view() const { return view_; }
  constexpr Walk walk() const { return walk_; }

  constexpr int64_t size() const { return row_blocks_ * channel_blocks_ * inner_blocks_; }

  // Rows of partial sums; with one, every channel's sum is complete in one task.
  constexpr int64_t splits() const { return row_blocks_ * inner_blocks_; }

  // How many tasks make a piece of work worth another thread.
  constexpr int64_t grain() const {
    return ceil_div(tuning::kThreadElements, ceil_div(view_.numel(), size()));
  }

  // Elements from one row to the next. The last row of a columns walk may be shorter: rows of
  // narrow tensors are joined, and what is left over is a beginning of one.
  constexpr int64_t row_size() const { return joined_ * view_.channels * view_.inner; }
  constexpr int64_t joined() const { return joined_; }

  // Whether all runs that the walk writes to an output there begin at cache lines, so that it may
  // be written past the caches.
  bool writes_whole_lines(const void* output) const {
    const int64_t run = walk_ == Walk::planes ? view_.inner : row_size();
    const int64_t block = walk_ == Walk::planes ? inner_block_ : channel_block_ * view_.inner;
    const auto begins_lines = [&](int64_t elements, int64_t of) {
      return elements >= of || elements * element_bytes_ % tuning::kCacheLine == 0;
    };
    return reinterpret_cast<uintptr_t>(output) % tuning::kCacheLine == 0 &&
           begins_lines(run, view_.numel()) && begins_lines(block, run);
  }

  // Whether it should be: a result so large would drive everything else from the caches, and then
  // its own beginning.
  bool should_bypass_caches(const void* output) const {
    return output != nullptr && view_.numel() * element_bytes_ >= tuning::kBypassBytes &&
           writes_whole_lines(output);
  }

  // Neighbouring tasks of a columns walk have the same channels, so that slopes need not be spread
  // again; those of a planes walk follow memory.
  constexpr Task operator[](int64_t index) const {
    const bool by_rows = walk_ == Walk::columns;
    const int64_t inner = index % inner_blocks_;
    const int64_t outer = index / inner_blocks_;
    const int64_t row = by_rows ? outer % row_blocks_ : outer / channel_blocks_;
    const int64_t channel = by_rows ? outer / row_blocks_ : outer % channel_blocks_;
    return {
        block(row, row_block_, rows_), block(channel, channel_block_, view_.channels),
        block(inner, inner_block_, view_.inner), row * inner_blocks_ + inner};
  }

 private:
  static constexpr Range block(int64_t index, int64_t size, int64_t total) {
    return {index * size, std::min((index + 1) * size, total)};
  }

  // What is worth sharing is cut into a multiple of kTaskMultiple tasks.
  constexpr int64_t task_elements(bool sums) const {
    const int64_t numel = view_.numel();
    const int64_t least = sums ? tuning::kSumTaskElements : tuning::kTaskElements;
    const int64_t elements = std::max(least, numel / tuning::kMaxTasks);
    if (numel < 2 * tuning::kThreadElements) {
      return elements;
    }
    const int64_t tasks =
        ceil_div(ceil_div(numel, elements), tuning::kTaskMultiple) * tuning::kTaskMultiple;
    return ceil_div(numel, tasks);
  }

  constexpr void plan_planes(bool sums) {
    walk_ = Walk::planes;
    rows_ = view_.outer;
    const int64_t target = task_elements(sums);
    inner_block_ = even_block(view_.inner, target);
    if (inner_block_ < view_.inner) {
      // Boundaries on whole cache lines.
      inner_block_ = ceil_div(inner_block_, 64) * 64;
      row_block_ = channel_block_ = 1;
      return;
    }
    if (!sums) {
      channel_block_ = even_block(view_.channels, target / view_.inner);
      row_block_ = even_block(rows_, target / (channel_block_ * view_.inner));
      return;
    }
    // Few channels and many rows to a task: partial sums stay few. But enough channels that each
    // row is touched in one long piece.
    const int64_t chunk = std::min(view_.channels, ceil_div(tuning::kMinChunk, view_.inner));
    row_block_ = even_block(rows_, target / (chunk * view_.inner));
    const int64_t channels = std::max(chunk, target / (row_block_ * view_.inner));
    channel_block_ = even_block(view_.channels, std::min(channels, tuning::kMaxPlaneChannels));
  }

  constexpr void plan_columns(bool sums) {
    walk_ = Walk::columns;
    // Join narrow rows, as many as fit but not most of a small tensor; if possible, so many that
    // they end on a whole step.
    const int64_t width = view_.channels * view_.inner;
    const int64_t columns_joined = std::min(view_.numel() / 32, tuning::kMaxJoined);
    const int64_t aligned = tuning::kColumnAlignment / std::gcd(width, tuning::kColumnAlignment);
    const int64_t step = aligned * width <= columns_joined ? aligned : 1;
    const int64_t steps = std::max<int64_t>(columns_joined / (step * width), 1);
    joined_ = std::min(view_.outer, step * steps);
    rows_ = ceil_div(view_.outer, joined_);
    inner_block_ = view_.inner;
    // Long pieces of rows suit memory, short ones the nearest cache.
    const bool in_cache = view_.numel() * element_bytes_ < tuning::kCacheBytes;
    const int64_t columns = !sums      ? tuning::kMaxColumns
                            : in_cache ? tuning::kMaxSumColumnsInCache
                                       : tuning::kMaxSumColumns;
    channel_block_ =
        joined_ > 1 ? view_.channels : even_block(view_.channels, columns / view_.inner);
    // Sums of too few rows would cost more than the rows, but small tensors need shares as well.
    const int64_t shares =
        ceil_div(tuning::kTaskMultiple, ceil_div(view_.channels, channel_block_));
    const int64_t least = sums ? std::min(tuning::kMinSumRows, ceil_div(rows_, shares)) : 1;
    const int64_t rows = task_elements(sums) / (joined_ * channel_block_ * view_.inner);
    row_block_ = even_block(rows_, std::max(rows, least));
  }

  ChannelView view_;
  int64_t element_bytes_;
  Walk walk_ = Walk::planes;
  int64_t joined_ = 1;
  int64_t rows_ = 1;
  int64_t row_block_ = 1;
  int64_t channel_block_ = 1;
  int64_t inner_block_ = 1;
  int64_t row_blocks_ = 1;
  int64_t channel_blocks_ = 1;
  int64_t inner_blocks_ = 1;
};

}  // namespace torch_ext::cpu
