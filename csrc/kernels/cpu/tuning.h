// The CPU engine's tuning: one table, an argument of every plan, so that tests and benchmarks can
// try others. Figures: Zen 3 (AVX2), float32 unless named, kernels alone, two values in turn in one
// process. (1): of the engine before this one, not measured again. Knows no layout.
#pragma once

#include <cstdint>

namespace torch_ext::cpu {

struct Tuning {
  // ---- Tasks ----
  // Elements worth waking another thread for: what one does in about 4 us.
  int64_t thread_elements = 32 << 10;
  // Elements of a task, about; with sums more, as each task pays for a row of partials.
  int64_t task_elements = 16 << 10;
  int64_t sum_task_elements = 32 << 10;
  // Tasks come in multiples of this, for equal shares: 11 tasks on two threads cost 9 % (1).
  int64_t task_multiple = 8;
  // Larger tensors get larger tasks, not more: partials stay few.
  int64_t max_tasks = 256;

  // ---- Planes ----
  // Shorter runs are walked as columns; later in 16 bit, where a pack holds twice as many elements.
  // 6x5: forward 60 GB/s as planes, 79 as columns; 7x7: 60 and 52, backward 52 and 41. In bfloat16
  // planes of 40 elements took twice as long as columns (1).
  int64_t min_plane = 24;
  int64_t min_plane_16_bit = 128;
  // Fewer rows are not worth spreading params over columns for, unless runs are tiny.
  int64_t few_rows = 4;
  int64_t tiny_plane = 16;
  // Running sums that a task keeps at hand: 3 sums take 48 KiB on AVX-512.
  int64_t max_plane_channels = 128;
  // Neighbours to touch before a task jumps to the next row: four pages.
  int64_t min_chunk = 4096;

  // ---- Columns ----
  // Bytes of params and sums that a task keeps at hand, and fewer where memory is not the limit.
  // (1024, 4096) backward takes 1.3 times as long with the second value for all.
  int64_t column_bytes = 64 << 10;
  int64_t column_bytes_in_cache = 32 << 10;
  // Narrow rows are joined up to so many columns, if possible to whole packs of this many elements.
  int64_t max_joined = 960;
  int64_t column_alignment = 16;
  // Rows of a task with sums, at least: fewer cost more to finish than to walk.
  int64_t min_sum_rows = 64;

  // ---- Memory ----
  int64_t cache_line = 64;
  // A tensor of more bytes is not found in caches.
  int64_t cache_bytes = 8 << 20;
  // A result of more bytes is written past the caches: 15 to 30 % where its memory is in use
  // already (1).
  int64_t bypass_bytes = 32 << 20;
  // Bytes of a task's tensors that stay in the second-level cache while several sweeps run over
  // them. Not measured yet: the smallest such cache among today's servers.
  int64_t whole_channel_bytes = 512 << 10;
};

inline constexpr Tuning kTuning{};

}  // namespace torch_ext::cpu
