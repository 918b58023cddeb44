// Which elements a CUDA thread visits: the index arithmetic of both traversals, with 64-bit
// positions throughout. Runs in the kernels, in the launch plan's property tests and in the
// static_asserts below. Knows no CUDA, no memory and no types of elements.
//
// A *pack* is 16 bytes that start at a 16-byte boundary of the tensor that is written: kPack
// elements. Runs that do not start or end on a boundary (odd H*W, odd C, misaligned storage) have
// packs that belong to them only in part; every other pack is loaded and stored whole.
#pragma once

#include <cstdint>

namespace torch_ext::cuda {

inline constexpr int kPackBytes = 16;

// Where a pack lies, and which of its elements, [begin, end), the thread visits.
struct PackPlace {
  int64_t position;  // flat index of the pack's element 0
  int32_t begin;
  int32_t end;
  bool whole;  // all of it is visited, and may be loaded with 128-bit loads

  constexpr bool empty() const { return begin >= end; }
  constexpr bool has(int element) const { return begin <= element && element < end; }
};

// What both traversals know about memory.
struct Memory {
  int64_t numel;
  int32_t base;   // elements between the last 16-byte boundary and element 0
  int32_t guard;  // elements on either side of a pack that a shifted load may touch as well

  // Elements between the last 16-byte boundary and this position.
  template <int kPack>
  constexpr int32_t shift(int64_t position) const {
    return static_cast<int32_t>((position + base) & (kPack - 1));
  }

  template <int kPack>
  constexpr PackPlace place(int64_t position, int64_t begin, int64_t end) const {
    PackPlace place{position, 0, 0, false};
    place.begin = static_cast<int32_t>(begin > 0 ? begin : 0);
    place.end = static_cast<int32_t>(end < 0 ? 0 : end < kPack ? end : kPack);
    place.whole = place.begin == 0 && place.end == kPack && position >= guard &&
                  position + kPack + guard <= numel;
    return place;
  }
};

// The work of the blocks: groups (of channels, each of which has all its elements in one group),
// cut into splits.
struct Tasks {
  int64_t groups;
  int64_t splits;
  bool clustered;  // the splits of a group are neighbouring tasks, and a cluster of blocks

  constexpr int64_t count() const { return groups * splits; }
  // Otherwise neighbouring tasks are neighbours in memory.
  constexpr int64_t group_of(int64_t task) const {
    return clustered ? task / splits : task % groups;
  }
  constexpr int64_t split_of(int64_t task) const {
    return clustered ? task % splits : task / groups;
  }
};

// Planes: for long runs of one channel. A task is a split of a channel. The planes of a channel,
// each divided into the same number of packs, form one sequence; a split is a range of it, which
// the threads of the block visit in turn. A channel that has all elements is one plane.
struct PlaneTraversal {
  Memory memory;
  Tasks tasks;  // a group is a channel
  int64_t inner;
  int64_t packs_per_plane;  // enough for the plane whose start is least aligned
  int64_t packs_per_channel;
  int64_t packs_per_split;  // a multiple of threads
  int32_t threads;
};

struct PlaneCursor {
  int64_t left;        // packs of the split from this thread's next one on
  int64_t pack;        // within the plane
  int64_t start;       // the plane's first element
  int64_t hop_packs;   // from one visit to the next: planes and packs
  int64_t hop_planes;  // ... as elements
  int64_t next_plane;  // from a plane of the channel to its next one, in elements
};

constexpr PlaneCursor first_cursor(const PlaneTraversal& traversal, int64_t task, int thread) {
  const int64_t begin = traversal.tasks.split_of(task) * traversal.packs_per_split;
  const int64_t end = begin + traversal.packs_per_split;
  const int64_t own = begin + thread;
  const int64_t next_plane = traversal.tasks.groups * traversal.inner;
  const int64_t plane = own / traversal.packs_per_plane;
  const int64_t hops = traversal.threads / traversal.packs_per_plane;
  PlaneCursor cursor{};
  cursor.left = (end < traversal.packs_per_channel ? end : traversal.packs_per_channel) - own;
  cursor.pack = own - plane * traversal.packs_per_plane;
  cursor.start = plane * next_plane + traversal.tasks.group_of(task) * traversal.inner;
  cursor.hop_packs = traversal.threads - hops * traversal.packs_per_plane;
  cursor.hop_planes = hops * next_plane;
  cursor.next_plane = next_plane;
  return cursor;
}

constexpr bool done(const PlaneCursor& cursor) {
  return cursor.left <= 0;
}

// Where the thread's next pack is; an empty place after its last.
template <int kPack>
constexpr PackPlace next_place(const PlaneTraversal& traversal, PlaneCursor& cursor) {
  const int32_t shift = traversal.memory.template shift<kPack>(cursor.start);
  const int64_t offset = cursor.pack * kPack - shift;  // within the plane
  const int64_t end = cursor.left > 0 ? traversal.inner - offset : 0;
  const PackPlace place =
      traversal.memory.template place<kPack>(cursor.start + offset, -offset, end);
  cursor.left -= traversal.threads;
  cursor.pack += cursor.hop_packs;
  cursor.start += cursor.hop_planes;
  if (cursor.pack >= traversal.packs_per_plane) {
    cursor.pack -= traversal.packs_per_plane;
    cursor.start += cursor.next_plane;
  }
  return place;
}

// Columns: for short runs, and for channels that lie next to one another. Memory is a matrix whose
// rows have every channel once, or several times if rows would be short; its columns are divided
// into segments of whole channels. A task is a split of the rows of a segment. A thread owns one
// pack of the segment, so that its params and sums stay in registers, and walks down the rows.
//
// Rows of odd length start at changing alignments. A block therefore visits only every stride()-th
// row in one pass, all of which are aligned alike, and needs several passes where there are few
// splits.
struct ColumnTraversal {
  Memory memory;
  Tasks tasks;  // a group is a segment
  int64_t channels;
  int64_t row_length;
  int64_t rows;  // the last one may be incomplete, if it is a merged one
  int64_t segment_channels;
  int32_t passes;
  int32_t inner;
  // The columns after which the channels begin again, in rows that have them several times; in
  // other rows at least a segment's width.
  int32_t period;

  constexpr int64_t stride() const { return tasks.splits * passes; }
  constexpr int64_t first_channel(int64_t task) const {
    return tasks.group_of(task) * segment_channels;
  }
  constexpr int32_t width(int64_t task) const {
    const int64_t begin = first_channel(task) * inner;
    const int64_t full = tasks.groups == 1 ? row_length : segment_channels * inner;
    return static_cast<int32_t>(row_length - begin < full ? row_length - begin : full);
  }
};

struct ColumnCursor {
  int64_t position;  // flat index of the pack's element 0 in the next row
  int64_t hop;       // from row to row
  int64_t rows;      // left
  int64_t stride;
  int32_t column;  // the segment's column of element 0, negative before its first one
  int32_t begin;   // elements of the pack that belong to the segment
  int32_t end;
};

template <int kPack>
constexpr ColumnCursor first_cursor(
    const ColumnTraversal& traversal, int64_t task, int pass, int thread) {
  const int64_t row = traversal.tasks.split_of(task) + pass * traversal.tasks.splits;
  const int64_t start =
      row * traversal.row_length + traversal.first_channel(task) * traversal.inner;
  const int32_t column = thread * kPack - traversal.memory.template shift<kPack>(start);
  const int32_t left = traversal.width(task) - column;
  ColumnCursor cursor{};
  cursor.position = start + column;
  cursor.stride = traversal.stride();
  cursor.hop = cursor.stride * traversal.row_length;
  cursor.column = column;
  cursor.begin = column < 0 ? -column : 0;
  cursor.end = left < 0 ? 0 : left < kPack ? left : kPack;
  cursor.rows = cursor.begin < cursor.end ? traversal.rows - row : 0;
  return cursor;
}

constexpr bool done(const ColumnCursor& cursor) {
  return cursor.rows <= 0;
}

// The channel of each element of a thread's packs, counted from the segment's first one; -1 where
// an element is not the segment's.
template <int kPack>
constexpr void pack_channels(
    const ColumnTraversal& traversal, const ColumnCursor& cursor, int32_t (&channels)[kPack]) {
  const int32_t offset = (cursor.column + cursor.begin) % traversal.period;
  const int32_t repeat = traversal.period / traversal.inner;
  int32_t channel = offset / traversal.inner;
  int32_t within = offset % traversal.inner;
  for (int i = 0; i < kPack; ++i) {
    const bool inside = cursor.begin <= i && i < cursor.end;
    channels[i] = inside ? channel : -1;
    within += inside ? 1 : 0;
    if (within == traversal.inner) {
      within = 0;
      channel = channel + 1 == repeat ? 0 : channel + 1;
    }
  }
}

template <int kPack>
constexpr PackPlace next_place(const ColumnTraversal& traversal, ColumnCursor& cursor) {
  const int64_t tail = traversal.memory.numel - cursor.position;
  const int64_t end = cursor.rows <= 0 ? 0 : tail < cursor.end ? tail : cursor.end;
  const PackPlace place =
      traversal.memory.template place<kPack>(cursor.position, cursor.begin, end);
  cursor.position += cursor.hop;
  cursor.rows -= cursor.stride;
  return place;
}

// Positions beyond 2^32: 32-bit arithmetic above does not compile.
namespace traversal_test {

inline constexpr int64_t kBig = int64_t{1} << 33;

// The position of the pack that a thread visits `visits` visits after this one.
template <typename Order, typename Cursor>
constexpr int64_t position_after(const Order& traversal, Cursor cursor, int visits) {
  for (int i = 0; i < visits; ++i) {
    next_place<4>(traversal, cursor);
  }
  return next_place<4>(traversal, cursor).position;
}

// Two channels, two planes each, of kBig elements; the second channel, from its first plane's last
// pack.
constexpr int64_t plane_position(int visits) {
  const PlaneTraversal traversal{{4 * kBig, 0, 0}, {2, 1, false}, kBig, kBig / 4,
                                 kBig / 2,         kBig / 2,      256};
  PlaneCursor cursor = first_cursor(traversal, 1, 0);
  cursor.pack = traversal.packs_per_plane - 1;
  return position_after(traversal, cursor, visits);
}
static_assert(plane_position(0) == 2 * kBig - 4);
static_assert(plane_position(1) == 3 * kBig + 255 * 4);

// Rows of kBig channels in segments of 1024; the last segment.
constexpr int64_t column_position(int visits) {
  const ColumnTraversal traversal{
      {3 * kBig, 0, 0}, {kBig / 1024, 1, false}, kBig, kBig, 3, 1024, 1, 1, 1024};
  return position_after(traversal, first_cursor<4>(traversal, kBig / 1024 - 1, 0, 0), visits);
}
static_assert(column_position(0) == kBig - 1024);
static_assert(column_position(2) == 3 * kBig - 1024);

}  // namespace traversal_test

}  // namespace torch_ext::cuda
