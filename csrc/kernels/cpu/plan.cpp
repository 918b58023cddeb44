#include "kernels/cpu/plan.h"

#include <algorithm>
#include <numeric>

namespace torch_ext::cpu {
namespace {

// Blocks of nearly equal size, none larger than `largest`. (Small tensors take the short way, here
// and below: divisions took 30 of the 54 ns of their plan.)
int64_t even_block(int64_t total, int64_t largest) {
  if (largest >= total) {
    return total;
  }
  return ceil_div(total, ceil_div(total, std::max<int64_t>(largest, 1)));
}

int64_t count_of(int64_t total, int64_t block) {
  return block >= total ? 1 : ceil_div(total, block);
}

Range block(int64_t index, int64_t size, int64_t total) {
  return {index * size, std::min((index + 1) * size, total)};
}

// What a task of the columns traversal keeps for each column: params, chains and accumulators.
int64_t bytes_per_column(const OperationCounts& counts, int64_t element_bytes) {
  const int64_t compute_bytes = element_bytes == 8 ? 8 : 4;
  return compute_bytes * (counts.params + 3 * counts.sums);
}

}  // namespace

Plan::Plan(
    const ChannelView& view,
    int64_t element_bytes,
    const OperationCounts& counts,
    const Tuning& tuning)
    : view_(view),
      element_bytes_(element_bytes),
      tensors_(counts.inputs + counts.outputs),
      tuning_(tuning) {
  const bool few_rows = view.outer < tuning.few_rows && view.inner >= tuning.tiny_plane;
  const int64_t min_plane = element_bytes == 2 ? tuning.min_plane_16_bit : tuning.min_plane;
  if (view.inner >= min_plane || view.channels == 1 || few_rows) {
    plan_planes(counts);
  } else {
    plan_columns(counts);
  }
  count_blocks();
}

std::optional<Plan> Plan::of_whole_channels(
    const ChannelView& view,
    int64_t element_bytes,
    const OperationCounts& counts,
    int tensors,
    const Tuning& tuning) {
  Plan plan(view, element_bytes, counts, tuning);
  const int64_t channel_bytes = view.outer * view.inner * element_bytes * std::max(tensors, 1);
  const int64_t most = std::min(
      tuning.whole_channel_bytes / channel_bytes,
      std::min(view.channels / tuning.task_multiple, tuning.max_plane_channels));
  if (plan.traversal_ != Traversal::kPlanes || most < 1) {
    return std::nullopt;
  }
  plan.row_block_ = view.outer;
  plan.channel_block_ = even_block(view.channels, most);
  plan.inner_block_ = view.inner;
  plan.count_blocks();
  return plan;
}

Traversal Plan::traversal() const {
  return traversal_;
}

const ChannelView& Plan::view() const {
  return view_;
}

int64_t Plan::size() const {
  return row_blocks_ * channel_blocks_ * inner_blocks_;
}

// Neighbouring tasks of columns have the same channels, so that params need not be spread again;
// those of planes follow the order of memory.
Task Plan::operator[](int64_t index) const {
  if (size() == 1) {
    return {{0, rows_}, {0, view_.channels}, {0, view_.inner}, 0};
  }
  const bool by_rows = traversal_ == Traversal::kColumns;
  const int64_t inner = index % inner_blocks_;
  const int64_t outer = index / inner_blocks_;
  const int64_t row = by_rows ? outer % row_blocks_ : outer / channel_blocks_;
  const int64_t channel = by_rows ? outer / row_blocks_ : outer % channel_blocks_;
  return {
      block(row, row_block_, rows_), block(channel, channel_block_, view_.channels),
      block(inner, inner_block_, view_.inner), row * inner_blocks_ + inner};
}

int64_t Plan::splits() const {
  return row_blocks_ * inner_blocks_;
}

int64_t Plan::task_grain() const {
  return ceil_div(tuning_.thread_elements, ceil_div(view_.numel(), size()));
}

int64_t Plan::channel_grain() const {
  return ceil_div(tuning_.thread_elements, splits());
}

int64_t Plan::joined() const {
  return joined_;
}

int64_t Plan::row_size() const {
  return joined_ * view_.channels * view_.inner;
}

bool Plan::exceeds_caches() const {
  const int64_t bytes = view_.numel() * element_bytes_;
  return bytes >= tuning_.bypass_bytes || bytes * tensors_ >= tuning_.last_level_bytes;
}

bool Plan::writes_whole_lines(const void* output) const {
  if (reinterpret_cast<uintptr_t>(output) % tuning_.cache_line != 0) {
    return false;
  }
  if (traversal_ == Traversal::kPlanes) {
    return true;
  }
  const auto begins_lines = [&](int64_t elements, int64_t of) {
    return elements >= of || elements * element_bytes_ % tuning_.cache_line == 0;
  };
  const int64_t piece = joined_ * channel_block_ * view_.inner;
  return begins_lines(row_size(), view_.numel()) && begins_lines(piece, row_size());
}

bool Plan::should_bypass_caches(const void* output) const {
  return output != nullptr && exceeds_caches() && writes_whole_lines(output);
}

int64_t Plan::prefetch_bytes() const {
  const bool is_long = inner_block_ * element_bytes_ > tuning_.max_prefetched_plane_bytes;
  return traversal_ == Traversal::kPlanes && is_long ? 0 : tuning_.prefetch_bytes;
}

// Work that is worth sharing is divided into a multiple of task_multiple tasks.
int64_t Plan::task_elements(bool sums) const {
  const int64_t numel = view_.numel();
  const int64_t least = sums ? tuning_.sum_task_elements : tuning_.task_elements;
  const int64_t elements = std::max(least, numel / tuning_.max_tasks);
  if (numel < 2 * tuning_.thread_elements) {
    return elements;
  }
  return ceil_div(numel, round_up(ceil_div(numel, elements), tuning_.task_multiple));
}

void Plan::plan_planes(const OperationCounts& counts) {
  traversal_ = Traversal::kPlanes;
  rows_ = view_.outer;
  const int64_t target = task_elements(counts.sums > 0);
  inner_block_ = even_block(view_.inner, target);
  if (inner_block_ < view_.inner) {
    inner_block_ = round_up(inner_block_, tuning_.cache_line);  // (elements, so whole lines)
    row_block_ = channel_block_ = 1;
    return;
  }
  if (counts.sums == 0) {
    channel_block_ = even_block(view_.channels, target / view_.inner);
    row_block_ = even_block(rows_, target / (channel_block_ * view_.inner));
    return;
  }
  // Tasks have few channels and many rows, which gives few partial sums, but enough channels that
  // each row is read in one long piece: beyond the caches as long as possible.
  const int64_t most = std::min(view_.channels, tuning_.max_plane_channels);
  const int64_t least =
      exceeds_caches() ? target : ceil_div(tuning_.min_chunk_bytes, element_bytes_);
  const int64_t chunk = std::min(most, ceil_div(least, view_.inner));
  row_block_ = even_block(rows_, target / (chunk * view_.inner));
  const int64_t channels = std::max(chunk, target / (row_block_ * view_.inner));
  channel_block_ = even_block(view_.channels, std::min(channels, most));
}

void Plan::plan_columns(const OperationCounts& counts) {
  traversal_ = Traversal::kColumns;
  // Join as many narrow rows as fit, but not most of a small tensor, and if possible so many that
  // they end on a whole pack.
  const int64_t width = view_.channels * view_.inner;
  const bool in_cache = view_.numel() * element_bytes_ < tuning_.cache_bytes;
  const int64_t columns = (in_cache ? tuning_.column_bytes_in_cache : tuning_.column_bytes) /
                          bytes_per_column(counts, element_bytes_);
  const int64_t fitting = std::min(view_.numel() / 32, columns);
  const int64_t most_joined = std::min(fitting, tuning_.max_joined);
  const int64_t most_aligned = std::min(fitting, tuning_.max_joined / 3 * 4);
  const int64_t aligned = tuning_.column_alignment / std::gcd(width, tuning_.column_alignment);
  const int64_t step = aligned * width <= most_aligned ? aligned : 1;
  joined_ = std::min(view_.outer, step * std::max<int64_t>(most_joined / (step * width), 1));
  rows_ = ceil_div(view_.outer, joined_);
  inner_block_ = view_.inner;
  channel_block_ = joined_ > 1 ? view_.channels : even_block(view_.channels, columns / view_.inner);
  // With too few rows for each task the sums would cost more than the rows, but small tensors have
  // to be shared as well.
  const int64_t shares = ceil_div(tuning_.task_multiple, ceil_div(view_.channels, channel_block_));
  const int64_t least =
      counts.sums > 0 ? std::min(tuning_.min_sum_rows, ceil_div(rows_, shares)) : 1;
  const int64_t rows = task_elements(counts.sums > 0) / (joined_ * channel_block_ * view_.inner);
  row_block_ = even_block(rows_, std::max(rows, least));
}

void Plan::count_blocks() {
  row_blocks_ = count_of(rows_, row_block_);
  channel_blocks_ = count_of(view_.channels, channel_block_);
  inner_blocks_ = count_of(view_.inner, inner_block_);
}

}  // namespace torch_ext::cpu
