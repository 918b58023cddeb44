// Which elements a CUDA thread visits: the index arithmetic of both traversals, with 64-bit
// positions throughout. Runs in the kernels, in the launch plan's property tests and in the
// static_asserts below. Knows no CUDA, no memory and no types of elements.
//
// A *slot* is 16 bytes that start at a 16-byte boundary of the tensor that is written: kVector
// elements. Runs that do not start or end on a boundary (odd H*W, odd C, misaligned storage) have
// slots that belong to them only in part; every other slot is loaded and stored whole.
#pragma once

#include <cstdint>

namespace torch_ext::cuda {

inline constexpr int kVectorBytes = 16;

struct Slot {
  int64_t position;  // flat index of the slot's element 0; only [begin, end) of it are the caller's
  int32_t begin;
  int32_t end;
  bool whole;  // all of it is the caller's, and may be loaded with 128-bit loads

  constexpr bool empty() const { return begin >= end; }
};

// What both traversals know about memory.
struct Memory {
  int64_t numel;
  int32_t base;   // elements between the last 16-byte boundary and element 0
  int32_t guard;  // elements on either side of a slot that a shifted load may touch as well

  // Elements between the last 16-byte boundary and this position.
  template <int kVector>
  constexpr int32_t shift(int64_t position) const {
    return static_cast<int32_t>((position + base) & (kVector - 1));
  }

  template <int kVector>
  constexpr Slot slot(int64_t position, int64_t begin, int64_t end) const {
    Slot slot{position, 0, 0, false};
    slot.begin = static_cast<int32_t>(begin > 0 ? begin : 0);
    slot.end = static_cast<int32_t>(end < 0 ? 0 : end < kVector ? end : kVector);
    slot.whole = slot.begin == 0 && slot.end == kVector && position >= guard &&
                 position + kVector + guard <= numel;
    return slot;
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

// Plane-wise: for long runs of one slope. A task is a split of a channel. The planes of a channel,
// one behind the other and each cut into the same number of slots, make one sequence; a split is a
// range of it, which the block's threads visit in turn. A shared slope is one plane.
struct PlaneWalk {
  Memory memory;
  Tasks tasks;  // a group is a channel
  int64_t inner;
  int64_t slots_per_plane;  // enough for the plane whose start is least aligned
  int64_t slots_per_channel;
  int64_t slots_per_split;  // a multiple of threads
  int32_t threads;
};

struct PlaneCursor {
  int64_t left;        // slots of the split from this thread's next one on
  int64_t slot;        // within the plane
  int64_t start;       // the plane's first element
  int64_t hop_slots;   // from one visit to the next: planes and slots
  int64_t hop_planes;  // ... as elements
  int64_t next_plane;  // from a plane of the channel to its next one, in elements
};

constexpr PlaneCursor first_slot(const PlaneWalk& walk, int64_t task, int thread) {
  const int64_t begin = walk.tasks.split_of(task) * walk.slots_per_split;
  const int64_t end = begin + walk.slots_per_split;
  const int64_t own = begin + thread;
  const int64_t next_plane = walk.tasks.groups * walk.inner;
  const int64_t plane = own / walk.slots_per_plane;
  const int64_t hops = walk.threads / walk.slots_per_plane;
  PlaneCursor cursor{};
  cursor.left = (end < walk.slots_per_channel ? end : walk.slots_per_channel) - own;
  cursor.slot = own - plane * walk.slots_per_plane;
  cursor.start = plane * next_plane + walk.tasks.group_of(task) * walk.inner;
  cursor.hop_slots = walk.threads - hops * walk.slots_per_plane;
  cursor.hop_planes = hops * next_plane;
  cursor.next_plane = next_plane;
  return cursor;
}

constexpr bool done(const PlaneCursor& cursor) {
  return cursor.left <= 0;
}

// The thread's next slot; an empty one behind its last.
template <int kVector>
constexpr Slot next_slot(const PlaneWalk& walk, PlaneCursor& cursor) {
  const int32_t shift = walk.memory.template shift<kVector>(cursor.start);
  const int64_t offset = cursor.slot * kVector - shift;  // within the plane
  const int64_t end = cursor.left > 0 ? walk.inner - offset : 0;
  const Slot slot = walk.memory.template slot<kVector>(cursor.start + offset, -offset, end);
  cursor.left -= walk.threads;
  cursor.slot += cursor.hop_slots;
  cursor.start += cursor.hop_planes;
  if (cursor.slot >= walk.slots_per_plane) {
    cursor.slot -= walk.slots_per_plane;
    cursor.start += cursor.next_plane;
  }
  return slot;
}

// Column-wise: for short runs, and for channels that lie next to one another. Memory is a matrix
// whose rows hold every channel once, or several times where that is short; its columns are cut
// into segments of whole channels. A task is a split of the rows of a segment. A thread owns one
// slot of the segment, so that its slopes and sums stay in registers, and walks the rows.
//
// Rows of odd length start at changing alignments. A block therefore visits only every stride()-th
// row in one pass, all of which are aligned alike, and needs several passes where there are few
// splits.
struct ColumnWalk {
  Memory memory;
  Tasks tasks;  // a group is a segment
  int64_t channels;
  int64_t row_length;
  int64_t rows;  // the last one may be incomplete, if it is a merged one
  int64_t segment_channels;
  int32_t passes;
  int32_t inner;
  // Columns after which the channels begin again, in rows that hold them several times; at least a
  // segment's width in others.
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
  int64_t position;  // flat index of the slot's element 0 in the next row
  int64_t step;      // from row to row
  int64_t rows;      // left
  int64_t stride;
  int32_t column;  // the segment's column of element 0, negative before its first one
  int32_t begin;   // elements of the slot that belong to the segment
  int32_t end;
};

template <int kVector>
constexpr ColumnCursor first_slot(const ColumnWalk& walk, int64_t task, int pass, int thread) {
  const int64_t row = walk.tasks.split_of(task) + pass * walk.tasks.splits;
  const int64_t start = row * walk.row_length + walk.first_channel(task) * walk.inner;
  const int32_t column = thread * kVector - walk.memory.template shift<kVector>(start);
  const int32_t left = walk.width(task) - column;
  ColumnCursor cursor{};
  cursor.position = start + column;
  cursor.stride = walk.stride();
  cursor.step = cursor.stride * walk.row_length;
  cursor.column = column;
  cursor.begin = column < 0 ? -column : 0;
  cursor.end = left < 0 ? 0 : left < kVector ? left : kVector;
  cursor.rows = cursor.begin < cursor.end ? walk.rows - row : 0;
  return cursor;
}

constexpr bool done(const ColumnCursor& cursor) {
  return cursor.rows <= 0;
}

// The channel of each element of a thread's slots, counted from the segment's first one; -1 where
// an element is not the segment's.
template <int kVector>
constexpr void slot_channels(
    const ColumnWalk& walk, const ColumnCursor& cursor, int32_t (&channels)[kVector]) {
  const int32_t offset = (cursor.column + cursor.begin) % walk.period;
  const int32_t repeat = walk.period / walk.inner;
  int32_t channel = offset / walk.inner;
  int32_t within = offset % walk.inner;
  for (int i = 0; i < kVector; ++i) {
    const bool inside = cursor.begin <= i && i < cursor.end;
    channels[i] = inside ? channel : -1;
    within += inside ? 1 : 0;
    if (within == walk.inner) {
      within = 0;
      channel = channel + 1 == repeat ? 0 : channel + 1;
    }
  }
}

template <int kVector>
constexpr Slot next_slot(const ColumnWalk& walk, ColumnCursor& cursor) {
  const int64_t tail = walk.memory.numel - cursor.position;
  const int64_t end = cursor.rows <= 0 ? 0 : tail < cursor.end ? tail : cursor.end;
  const Slot slot = walk.memory.template slot<kVector>(cursor.position, cursor.begin, end);
  cursor.position += cursor.step;
  cursor.rows -= cursor.stride;
  return slot;
}

// Positions beyond 2^32: 32-bit arithmetic above does not compile.
namespace walk_test {

inline constexpr int64_t kBig = int64_t{1} << 33;

// The position of the slot that a thread visits `visits` visits after this one.
template <typename Walk, typename Cursor>
constexpr int64_t position_after(const Walk& walk, Cursor cursor, int visits) {
  for (int i = 0; i < visits; ++i) {
    next_slot<4>(walk, cursor);
  }
  return next_slot<4>(walk, cursor).position;
}

// Two channels, two planes each, of kBig elements; the second channel, from its first plane's last
// slot.
constexpr int64_t plane_position(int visits) {
  const PlaneWalk walk{{4 * kBig, 0, 0}, {2, 1, false}, kBig, kBig / 4, kBig / 2, kBig / 2, 256};
  PlaneCursor cursor = first_slot(walk, 1, 0);
  cursor.slot = walk.slots_per_plane - 1;
  return position_after(walk, cursor, visits);
}
static_assert(plane_position(0) == 2 * kBig - 4);
static_assert(plane_position(1) == 3 * kBig + 255 * 4);

// Rows of kBig channels in segments of 1024; the last segment.
constexpr int64_t column_position(int visits) {
  const ColumnWalk walk{{3 * kBig, 0, 0}, {kBig / 1024, 1, false}, kBig, kBig, 3, 1024, 1, 1, 1024};
  return position_after(walk, first_slot<4>(walk, kBig / 1024 - 1, 0, 0), visits);
}
static_assert(column_position(0) == kBig - 1024);
static_assert(column_position(2) == 3 * kBig - 1024);

}  // namespace walk_test

}  // namespace torch_ext::cuda
