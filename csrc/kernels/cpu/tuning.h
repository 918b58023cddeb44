// The CPU engine's tuning: one table, an argument of every plan, so that tests and benchmarks can
// try others. Figures: Zen 3 (AVX2), float32 unless named, kernels alone, two values measured in
// turns in one process. (1): measured with the previous engine only. Knows no layout.
#pragma once

#include <cstdint>

namespace torch_ext::cpu {

struct Tuning {
  // ---- Tasks ----
  // Elements that are worth waking another thread for: the work of about 4 us.
  int64_t thread_elements = 32 << 10;
  // Elements of a task, approximately; more with sums, because each task has a row of partial sums.
  int64_t task_elements = 16 << 10;
  int64_t sum_task_elements = 32 << 10;
  // Tasks come in multiples of this, for equal shares: 11 tasks on two threads cost 9 % (1).
  int64_t task_multiple = 8;
  // Larger tensors get larger tasks instead of more, which limits the number of partial sums.
  int64_t max_tasks = 256;

  // ---- Planes ----
  // Shorter runs are traversed as columns. The limit is higher for 16-bit data, where a pack holds
  // twice as many elements.
  // GB/s as planes and as columns, forward; backward: 5x4 64, 77; 42, 38. 5x5 71, 81; 54, 52. 6x6
  // 85, 78; 64, 49. bfloat16 7x7 27, 31; 22, 25. 8x8 36, 31; 26, 16. float16 10x10 32, 40; 30, 15.
  int64_t min_plane = 24;
  int64_t min_plane_16_bit = 64;
  // With fewer rows it is not worth spreading params over columns, unless runs are tiny.
  int64_t few_rows = 4;
  int64_t tiny_plane = 16;
  // Running sums of a task: on AVX-512 128 bytes for each channel and sum, which have to stay in
  // the first-level cache beside the chunk of each tensor. Zen 5, 16x128x7x7 backward: 64 channels
  // 84 GB/s, 128 76.
  int64_t max_plane_channels = 64;
  // Bytes of a tensor that a task processes before it goes to the next row. 16x128x7x7 by 8 and 16
  // KiB: 89, 84. Beyond the caches a task goes to the next row as late as it can, because memory is
  // read best in one direction. By 16 KiB and like this: 64x256x14x14 54, 77; 10x128x45x60 52, 70;
  // bfloat16 32x256x26x26 39, 72.
  int64_t min_chunk_bytes = 8 << 10;

  // ---- Columns ----
  // Bytes of params and sums of a task, and fewer where memory is not the limit. (1024, 4096)
  // backward takes 1.3 times as long with the second value for all.
  int64_t column_bytes = 64 << 10;
  int64_t column_bytes_in_cache = 32 << 10;
  // Narrow rows are joined up to this many columns, if possible to whole packs of the second number
  // of elements, even if that takes a third more columns: Zen 5, backward of (20400, 150), where 8
  // rows are whole packs, 69 instead of 39 GB/s. But 1280 for all costs 5 % at 64 columns.
  int64_t max_joined = 960;
  int64_t column_alignment = 16;
  // The fewest rows of a task with sums: with fewer, finishing the sums costs more than the rows.
  int64_t min_sum_rows = 64;

  // ---- Memory ----
  int64_t cache_line = 64;
  // A tensor of more bytes does not fit the caches.
  int64_t cache_bytes = 8 << 20;
  // A result of more bytes uses non-temporal stores, which gains 15 to 30 % where its memory is in
  // use already (1).
  int64_t bypass_bytes = 32 << 20;
  // So does the result of an operation whose tensors together exceed the last-level caches of
  // the threads, in bytes, which launch.cpp asks the system for. Forward and backward of 13 to 32
  // MB each, where that cache has 32 MiB: 1.2 to 1.5 times as fast, followed by a pass that reads
  // the result 1.1 to 1.3, followed by one that reads two tensors and writes a third 1.0 to 1.3.
  int64_t last_level_bytes = INT64_MAX;
  // How far ahead of its position, in bytes, a traversal asks for its inputs where it bypasses the
  // caches: columns, and planes up to so many bytes, which have so many instructions for each line
  // that the processor looks too few lines ahead by itself. Zen 5, backward in GB/s without and
  // with: 128x512x7x7 42, 69; bfloat16 128x256x14x14 46, 60; (1024, 4096) 39, 50; (1000003, 3)
  // 67, 82. But with longer planes it takes time: bfloat16 128x64x112x112 39, 25.
  int64_t prefetch_bytes = 4 << 10;
  int64_t max_prefetched_plane_bytes = 2 << 10;
  // Bytes of a task's tensors that stay in the second-level cache while several sweeps run over
  // them. Not measured yet; this is the smallest such cache among current servers.
  int64_t whole_channel_bytes = 512 << 10;
};

inline constexpr Tuning kTuning{};

}  // namespace torch_ext::cpu
