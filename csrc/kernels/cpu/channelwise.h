// Walks channelwise data: runs an operation over all elements of a task with the slope that belongs to
// each, maps them to an output and sums a term per channel, in one pass. Owns loads, stores, tails and
// the order of sums; knows neither the operation nor threads.
//
// An operation Op<scalar_t> has
//   kInputs        how many tensors of the task's layout it reads
//   kMaps, kSums   what it produces
//   map(in, w)     the output of one vector of elements, from in[kInputs] and their slopes
//   term(in)       what each element adds to its channel's sum
#pragma once

#include <array>
#include <cstdint>
#include <new>

#include "kernels/cpu/channel_tasks.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/prelu.h"

namespace torch_ext::cpu::CPU_CAPABILITY {

// Up to kCapacity values on the stack, of which only those asked for are initialised: a task's first
// touch must stay cheap for tensors of a few elements.
template <typename T, int64_t kCapacity>
class Scratch {
 public:
  explicit Scratch(int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      new (data() + i) T();
    }
  }
  T* data() { return reinterpret_cast<T*>(bytes_); }
  T& operator[](int64_t i) { return data()[i]; }

 private:
  alignas(64) std::byte bytes_[kCapacity * sizeof(T)];
};

// One task's work on one operation.
template <typename Op, typename scalar_t, typename weight_t>
class Walker {
 public:
  using Step = Lanes<scalar_t>;
  using acc_t = typename Step::acc_t;
  using Vec = typename Step::Vec;
  using Operands = ChannelwiseOperands<scalar_t, weight_t, Op::kInputs>;
  using Sums = ChannelSums<acc_t, weight_t>;
  static constexpr int kVectors = Step::kVectors;
  // A sum's chain is as long as accuracy allows; without sums it only bounds the loop.
  static constexpr int64_t kRounds = Op::kSums ? kChain : INT64_MAX;

  Walker(const ChannelTasks& tasks, const Operands& operands, const Sums& sums)
      : tasks_(tasks), operands_(operands), sums_(sums) {}

  void run(const Task& task) const {
    tasks_.walk() == Walk::planes ? planes(task) : columns(task);
  }

 private:
  using Chain = std::array<Vec, kVectors>;
  using Inputs = std::array<Step, Op::kInputs>;

  // --- one step of elements: everything here is inlined into the loops below, which keep the pointers
  // in registers (a SIMD store may alias anything that lives in memory) ------------------------------

  // The elements that `from` points to; their terms are added to `chain`.
  C10_ALWAYS_INLINE static void step(const Operands& from, const Chain& slopes, Chain& chain) {
    Inputs in;
    for (int i = 0; i < Op::kInputs; ++i) {
      in[i] = Step::load(from.inputs[i]);
    }
    Step out;
    combine(in, slopes, out, chain);
    if constexpr (Op::kMaps) {
      out.store(from.output);
    }
  }

  // Fewer elements than a step has. Absent ones read as 0, whose term is 0.
  static void short_step(const Operands& from, int64_t count, const Chain& slopes, Chain& chain) {
    Inputs in;
    for (int i = 0; i < Op::kInputs; ++i) {
      in[i] = Step::load(from.inputs[i], count);
    }
    Step out;
    combine(in, slopes, out, chain);
    if constexpr (Op::kMaps) {
      out.store(from.output, count);
    }
  }

  // A step over the last elements of a run, of which only the last `count` are new: mapping the others
  // again changes nothing, but their terms must not count twice.
  C10_ALWAYS_INLINE static void overlapping_step(
      const Operands& from, int64_t count, const Chain& slopes, Chain& chain) {
    Chain terms = zeros();
    step(from, slopes, terms);
    if constexpr (Op::kSums) {
      const LastLanes<acc_t, kVectors> last(count);
      for (int v = 0; v < kVectors; ++v) {
        chain[v] = chain[v] + last.keep(terms[v], v);
      }
    }
  }

  C10_ALWAYS_INLINE static void combine(
      const Inputs& in, const Chain& slopes, Step& out, Chain& chain) {
    for (int v = 0; v < kVectors; ++v) {
      std::array<Vec, Op::kInputs> values;
      for (int i = 0; i < Op::kInputs; ++i) {
        values[i] = in[i].vec[v];
      }
      if constexpr (Op::kMaps) {
        out.vec[v] = Op::map(values, slopes[v]);
      }
      if constexpr (Op::kSums) {
        chain[v] = chain[v] + Op::term(values);
      }
    }
  }

  C10_ALWAYS_INLINE static Chain zeros() { return broadcast(acc_t(0)); }

  C10_ALWAYS_INLINE static Chain broadcast(acc_t value) {
    Chain chain;
    chain.fill(Vec(value));
    return chain;
  }

  // --- planes: long runs of one slope ---------------------------------------------------------------

  void planes(const Task& task) const {
    const ChannelView& view = tasks_.view();
    Scratch<WideLanes<acc_t>, tuning::kMaxPlaneChannels> sums(
        Op::kSums ? task.channels.size() : 0);
    for (int64_t row = task.rows.first; row < task.rows.last; ++row) {
      for (int64_t c = task.channels.first; c < task.channels.last; ++c) {
        const int64_t at = (row * view.channels + c) * view.inner + task.inner.first;
        const Chain slope = broadcast(static_cast<acc_t>(operands_.weight[c]));
        run_of(operands_ + at, task.inner.size(), slope, sums[c - task.channels.first]);
      }
    }
    if constexpr (Op::kSums) {
      for (int64_t c = task.channels.first; c < task.channels.last; ++c) {
        sums_.put(task.split, c, total(sums[c - task.channels.first]));
      }
    }
  }

  // Neighbours that share a slope.
  static void run_of(
      const Operands& start, int64_t count, const Chain& slope, WideLanes<acc_t>& sum) {
    constexpr int kUnroll = 4 / kVectors;  // four chains of additions hide their latency
    Operands at = start;
    int64_t left = count;
    while (left >= kUnroll * Step::kSize) {
      std::array<Chain, kUnroll> chains;
      chains.fill(zeros());
      const int64_t rounds = std::min<int64_t>(kRounds, left / (kUnroll * Step::kSize));
      for (int64_t round = 0; round < rounds; ++round) {
        for (int u = 0; u < kUnroll; ++u) {
          step(at + u * Step::kSize, slope, chains[u]);
        }
        at = at + kUnroll * Step::kSize;
      }
      left -= rounds * kUnroll * Step::kSize;
      add(chains, sum);
    }
    std::array<Chain, 1> chain{zeros()};
    for (; left >= Step::kSize; left -= Step::kSize) {
      step(at, slope, chain[0]);
      at = at + Step::kSize;
    }
    if (left > 0) {
      count >= Step::kSize ? overlapping_step(at + (left - Step::kSize), left, slope, chain[0])
                           : short_step(at, left, slope, chain[0]);
    }
    add(chain, sum);
  }

  template <size_t kChains>
  C10_ALWAYS_INLINE static void add(const std::array<Chain, kChains>& chains, WideLanes<acc_t>& sum) {
    if constexpr (Op::kSums) {
      // A tree over 1, 2 or 4 vectors.
      std::array<Vec, kChains * kVectors> vectors;
      for (size_t i = 0; i < vectors.size(); ++i) {
        vectors[i] = chains[i / kVectors][i % kVectors];
      }
      for (size_t width = vectors.size() / 2; width > 0; width /= 2) {
        for (size_t i = 0; i < width; ++i) {
          vectors[i] = vectors[i] + vectors[i + width];
        }
      }
      sum.add(vectors[0]);
    }
  }

  // --- columns: a slope per column ------------------------------------------------------------------

  static constexpr int64_t kRowGroup = 4;  // rows that share one load of slopes and sums
  static constexpr int64_t kColumnStorage = tuning::kMaxColumns + 64;  // a step may read past the last

  // Slopes and running sums of the task's columns.
  struct ColumnState {
    explicit ColumnState(int64_t count)
        : slopes(count), chains(Op::kSums ? count : 0), wide(Op::kSums ? count / Vec::size() : 0) {}

    Scratch<acc_t, kColumnStorage> slopes;
    Scratch<acc_t, kColumnStorage> chains;
    Scratch<WideLanes<acc_t>, kColumnStorage / Vec::size()> wide;
  };

  void columns(const Task& task) const {
    const ChannelView& view = tasks_.view();
    const int64_t first_column = task.channels.first * view.inner;
    const int64_t count = tasks_.joined() * task.channels.size() * view.inner;
    const int64_t padded = ceil_div(count, Step::kSize) * Step::kSize;
    ColumnState state(padded);
    spread_slopes(task, state.slopes.data());

    int pending = 0;
    int64_t row = task.rows.first;
    const auto advance = [&]<int64_t kRows>(std::integral_constant<int64_t, kRows>, int64_t width) {
      rows<kRows>(
          operands_ + (row * tasks_.row_size() + first_column), tasks_.row_size(), width, state);
      row += kRows;
      if (Op::kSums && ++pending == kChain) {
        widen(padded, state);
        pending = 0;
      }
    };
    // The very last row may be a short one.
    const int64_t whole_rows = view.numel() / tasks_.row_size();
    while (row + kRowGroup <= std::min(task.rows.last, whole_rows)) {
      advance(std::integral_constant<int64_t, kRowGroup>{}, count);
    }
    while (row < task.rows.last) {
      const int64_t width =
          row < whole_rows ? count : view.numel() - whole_rows * tasks_.row_size();
      advance(std::integral_constant<int64_t, 1>{}, width);
    }
    if constexpr (Op::kSums) {
      widen(padded, state);
      put_columns(task, padded, state);
    }
  }

  void spread_slopes(const Task& task, acc_t* slopes) const {
    for (int64_t j = 0; j < tasks_.joined(); ++j) {
      for (int64_t c = task.channels.first; c < task.channels.last; ++c) {
        const acc_t slope = static_cast<acc_t>(operands_.weight[c]);
        for (int64_t i = 0; i < tasks_.view().inner; ++i) {
          *slopes++ = slope;
        }
      }
    }
  }

  // kRows rows, `row_size` elements apart, of which the first begins at `start`; `width` columns of each.
  template <int64_t kRows>
  static void rows(const Operands& start, int64_t row_size, int64_t width, ColumnState& state) {
    const Operands at = start;
    acc_t* const slopes = state.slopes.data();
    acc_t* const chains = state.chains.data();
    int64_t column = 0;
    for (; width - column >= Step::kSize; column += Step::kSize) {
      each_row<kRows>(slopes + column, chains + column, [&](int64_t row, const Chain& slope, Chain& chain)
                          __attribute__((always_inline)) {
        step(at + (row * row_size + column), slope, chain);
      });
    }
    const int64_t left = width - column;
    if (left > 0 && width >= Step::kSize) {
      column = width - Step::kSize;
      each_row<kRows>(slopes + column, chains + column, [&](int64_t row, const Chain& slope, Chain& chain) {
        overlapping_step(at + (row * row_size + column), left, slope, chain);
      });
    } else if (left > 0) {
      each_row<kRows>(slopes + column, chains + column, [&](int64_t row, const Chain& slope, Chain& chain) {
        short_step(at + (row * row_size + column), left, slope, chain);
      });
    }
  }

  // One step of columns in kRows rows: slopes are loaded and sums updated once for all of them.
  template <int64_t kRows, typename RowStep>
  C10_ALWAYS_INLINE static void each_row(acc_t* slopes, acc_t* chains, const RowStep& row_step) {
    Chain slope;
    for (int v = 0; v < kVectors; ++v) {
      slope[v] = Vec::loadu(slopes + v * Vec::size());
    }
    std::array<Chain, kRows> terms;
    terms.fill(zeros());
    for (int64_t row = 0; row < kRows; ++row) {
      row_step(row, slope, terms[row]);
    }
    if constexpr (Op::kSums) {
      for (int v = 0; v < kVectors; ++v) {
        Vec sum = terms[0][v];
        if constexpr (kRows == kRowGroup) {
          sum = (sum + terms[1][v]) + (terms[2][v] + terms[3][v]);
        }
        acc_t* const chain = chains + v * Vec::size();
        (Vec::loadu(chain) + sum).store(chain);
      }
    }
  }

  static void widen(int64_t padded, ColumnState& state) {
    for (int64_t i = 0; i < padded / Vec::size(); ++i) {
      acc_t* chain = state.chains.data() + i * Vec::size();
      state.wide[i].add(Vec::loadu(chain));
      Vec(acc_t(0)).store(chain);
    }
  }

  // Sums the columns of each channel, in order.
  void put_columns(const Task& task, int64_t padded, ColumnState& state) const {
    Scratch<WideSum<acc_t>, kColumnStorage> columns(0);
    for (int64_t i = 0; i < padded / Vec::size(); ++i) {
      state.wide[i].store(columns.data() + i * Vec::size());
    }
    const int64_t inner = tasks_.view().inner;
    for (int64_t c = 0; c < task.channels.size(); ++c) {
      WideSum<acc_t> sum;
      for (int64_t j = 0; j < tasks_.joined(); ++j) {
        for (int64_t i = 0; i < inner; ++i) {
          sum.add(columns[(j * task.channels.size() + c) * inner + i]);
        }
      }
      sums_.put(task.split, task.channels.first + c, sum);
    }
  }

  const ChannelTasks& tasks_;
  const Operands& operands_;
  const Sums& sums_;
};

}  // namespace torch_ext::cpu::CPU_CAPABILITY
