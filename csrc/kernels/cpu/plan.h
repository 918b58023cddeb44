// How a dense tensor is cut into tasks: a pure function of its sizes, never of the number of
// threads, so that sums have the same bits whichever thread runs a task. Knows no threads.
//
// (Functions are either never or always inlined: the engine is compiled for several instruction
// sets, and a linker could otherwise use the copy of one of them for all.)
#pragma once

#include <c10/macros/Macros.h>

#include <cstdint>
#include <optional>

#include "kernels/channel_view.h"
#include "kernels/cpu/tuning.h"
#include "kernels/operation.h"

namespace torch_ext::cpu {

struct Range {
  int64_t first;
  int64_t last;

  C10_ALWAYS_INLINE int64_t size() const { return last - first; }
};

// A box of work: all combinations of rows x channels x inner positions.
struct Task {
  Range rows;
  Range channels;
  Range inner;
  int64_t split;  // the row of partial sums that it owns, for its channels
};

class Plan {
 public:
  // `view` must not be empty. Operations with sums are divided so that there are few partial sums,
  // others in the order of memory.
  Plan(
      const ChannelView& view,
      int64_t element_bytes,
      const OperationCounts& counts,
      const Tuning& tuning = kTuning);

  // Tasks that hold all elements of their channels, few enough for a cache: several operations then
  // run over a task before the next one begins. `counts` are the largest of these operations,
  // `tensors` says how many tensors they touch. Empty where channels are too few or too large.
  static std::optional<Plan> of_whole_channels(
      const ChannelView& view,
      int64_t element_bytes,
      const OperationCounts& counts,
      int tensors,
      const Tuning& tuning = kTuning);

  Traversal traversal() const;
  const ChannelView& view() const;

  int64_t size() const;  // tasks
  Task operator[](int64_t index) const;

  // Rows of partial sums; with one, every channel's sum is complete in one task.
  int64_t splits() const;

  // How many tasks, or channels whose partial sums are to be added, are enough work for another
  // thread.
  int64_t task_grain() const;
  int64_t channel_grain() const;

  // Columns: the elements from one row to the next, where rows of narrow tensors are joined to
  // longer ones; the last row may be incomplete.
  int64_t joined() const;
  int64_t row_size() const;

  // Whether a traversal writes whole cache lines to an output at this address, so that non-temporal
  // stores are possible (planes: apart from the ends of a task's rows); and whether they should be
  // used: a large result would evict everything else from the caches, and then its own beginning.
  bool writes_whole_lines(const void* output) const;
  bool should_bypass_caches(const void* output) const;

  // How far ahead inputs are to be asked for where the caches are bypassed; 0: not at all.
  int64_t prefetch_bytes() const;

 private:
  void plan_planes(const OperationCounts& counts);
  void plan_columns(const OperationCounts& counts);
  void count_blocks();
  int64_t task_elements(bool sums) const;
  bool exceeds_caches() const;

  ChannelView view_;
  int64_t element_bytes_;
  int tensors_;  // inputs and outputs
  Tuning tuning_;
  Traversal traversal_ = Traversal::kPlanes;
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
