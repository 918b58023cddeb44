// The CPU engine's tuning: one table, an argument of every plan, so that tests and benchmarks can
// try others.
#pragma once

#include <cstdint>

namespace torch_ext::cpu {

struct Tuning {
  // Tasks.
  int64_t thread_elements = 32768;    // worth waking another thread for
  int64_t task_elements = 16384;      // of a task, about; ...
  int64_t sum_task_elements = 32768;  // ... with sums, which each task pays for
  int64_t task_multiple = 8;          // of tasks, for equal shares of few threads
  int64_t max_tasks = 256;            // larger tensors get larger tasks, not more
  // Planes.
  int64_t min_plane = 24;            // shorter runs are walked as columns,
  int64_t min_plane_16_bit = 128;    // later where a pack holds twice as many elements
  int64_t few_rows = 4;              // too few to spread values of channels for, unless runs ...
  int64_t tiny_plane = 16;           // ... are shorter than this
  int64_t max_plane_channels = 128;  // running sums a task keeps at hand
  int64_t min_chunk = 4096;          // neighbours to touch before jumping to the next row
  // Columns.
  int64_t column_bytes = 64 << 10;           // of params and sums that a task keeps at hand, ...
  int64_t column_bytes_in_cache = 32 << 10;  // ... and where memory is not the limit
  int64_t max_joined = 960;                  // columns of narrow rows that are joined
  int64_t column_alignment = 16;             // elements of the widest pack that matter
  int64_t min_sum_rows = 64;
  // Memory, in bytes.
  int64_t cache_line = 64;
  int64_t cache_bytes = 8 << 20;            // a tensor of more is not found in caches
  int64_t bypass_bytes = 32 << 20;          // a result of more would empty the caches
  int64_t whole_channel_bytes = 512 << 10;  // a task's tensors that stay in the second-level cache
};

inline constexpr Tuning kTuning{};

}  // namespace torch_ext::cpu
