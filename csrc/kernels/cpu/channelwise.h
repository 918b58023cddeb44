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

#include <algorithm>
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
  // Steps taken together: as many as registers hold.
  static constexpr int kGroup = 4 / kVectors;

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

  C10_ALWAYS_INLINE static Operands advanced(Operands from, int64_t elements) {
    for (const scalar_t*& input : from.inputs) {
      input += elements;
    }
    if constexpr (Op::kMaps) {
      from.output += elements;
    }
    return from;
  }

  // Steps at several places, with the slopes and chains of each. All loads come before the first store:
  // a load that follows a store with the same last 12 address bits would have to wait for it.
  template <size_t kSteps>
  C10_ALWAYS_INLINE static void steps(
      const std::array<Operands, kSteps>& at, const std::array<Chain, kSteps>& slopes,
      std::array<Chain, kSteps>& chains) {
    std::array<Inputs, kSteps> in;
    for (size_t s = 0; s < kSteps; ++s) {
      for (int i = 0; i < Op::kInputs; ++i) {
        in[s][i] = Step::load(at[s].inputs[i]);
      }
    }
    std::array<Step, kSteps> out;
    for (size_t s = 0; s < kSteps; ++s) {
      combine(in[s], slopes[s], out[s], chains[s]);
    }
    if constexpr (Op::kMaps) {
      for (size_t s = 0; s < kSteps; ++s) {
        out[s].store(at[s].output);
      }
    }
  }

  C10_ALWAYS_INLINE static void step(const Operands& at, const Chain& slopes, Chain& chain) {
    std::array<Chain, 1> chains{chain};
    steps<1>({at}, {slopes}, chains);
    chain = chains[0];
  }

  template <size_t kSteps>
  C10_ALWAYS_INLINE static std::array<Operands, kSteps> neighbours(const Operands& first) {
    std::array<Operands, kSteps> at;
    for (size_t s = 0; s < kSteps; ++s) {
      at[s] = advanced(first, s * Step::kSize);
    }
    return at;
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
        run_of(advanced(operands_, at), task.inner.size(), slope, sums[c - task.channels.first]);
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
    Operands at = start;
    int64_t left = count;
    std::array<Chain, kGroup> slopes;
    slopes.fill(slope);
    while (left >= kGroup * Step::kSize) {
      std::array<Chain, kGroup> chains;
      chains.fill(zeros());
      const int64_t rounds = std::min<int64_t>(kRounds, left / (kGroup * Step::kSize));
      for (int64_t round = 0; round < rounds; ++round) {
        steps<kGroup>(neighbours<kGroup>(at), slopes, chains);
        at = advanced(at, kGroup * Step::kSize);
      }
      left -= rounds * kGroup * Step::kSize;
      add(chains, sum);
    }
    std::array<Chain, 1> chain{zeros()};
    for (; left >= Step::kSize; left -= Step::kSize) {
      step(at, slope, chain[0]);
      at = advanced(at, Step::kSize);
    }
    if (left > 0) {
      count >= Step::kSize ? overlapping_step(advanced(at, left - Step::kSize), left, slope, chain[0])
                           : short_step(at, left, slope, chain[0]);
    }
    add(chain, sum);
  }

  template <size_t kChains>
  C10_ALWAYS_INLINE static void add(
      const std::array<Chain, kChains>& chains, WideLanes<acc_t>& sum) {
    if constexpr (Op::kSums) {
      const Chain lanes = tree(chains);
      if constexpr (kVectors == 2) {
        sum.add(lanes[0] + lanes[1]);
      } else {
        sum.add(lanes[0]);
      }
    }
  }

  // The sum of 1, 2 or 4 chains.
  template <size_t kChains>
  C10_ALWAYS_INLINE static Chain tree(std::array<Chain, kChains> chains) {
    for (size_t half = kChains / 2; half > 0; half /= 2) {
      for (size_t i = 0; i < half; ++i) {
        for (int v = 0; v < kVectors; ++v) {
          chains[i][v] = chains[i][v] + chains[i + half][v];
        }
      }
    }
    return chains[0];
  }

  // --- columns: a slope per column ------------------------------------------------------------------

  // A group of steps is taken from several rows where they share a sum to update, else from one row.
  static constexpr int64_t kRowGroup = Op::kSums ? kGroup : 1;
  static constexpr int64_t kColumnGroup = kGroup / kRowGroup;
  static constexpr int64_t kColumnStorage = tuning::kMaxColumns + 64;  // a step may read past the last

  // Slopes and running sums of the task's columns.
  struct ColumnState {
    explicit ColumnState(int64_t padded)
        : slopes(0), chains(Op::kSums ? padded : 0), wide(Op::kSums ? padded / Vec::size() : 0) {}

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
    std::fill(state.slopes.data() + count, state.slopes.data() + padded, acc_t(0));

    int pending = 0;
    int64_t row = task.rows.first;
    const auto advance = [&]<int64_t kRows>(std::integral_constant<int64_t, kRows>, int64_t width) {
      rows<kRows>(
          advanced(operands_, row * tasks_.row_size() + first_column), tasks_.row_size(), width,
          state);
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
    const int64_t channels = task.channels.size();
    const int64_t inner = tasks_.view().inner;
    const weight_t* const weight = operands_.weight + task.channels.first;
    if (inner == 1) {
      for (int64_t c = 0; c < channels; ++c) {
        slopes[c] = static_cast<acc_t>(weight[c]);
      }
    } else {
      for (int64_t c = 0; c < channels; ++c) {
        std::fill_n(slopes + c * inner, inner, static_cast<acc_t>(weight[c]));
      }
    }
    for (int64_t j = 1; j < tasks_.joined(); ++j) {
      std::copy_n(slopes, channels * inner, slopes + j * channels * inner);
    }
  }

  // kRows rows, `row_size` elements apart, of which the first begins at `start`; `width` columns of each.
  template <int64_t kRows>
  static void rows(const Operands& start, int64_t row_size, int64_t width, ColumnState& state) {
    const Operands at = start;
    const acc_t* const slopes = state.slopes.data();
    acc_t* const chains = state.chains.data();
    int64_t column = 0;
    for (; width - column >= kColumnGroup * Step::kSize; column += kColumnGroup * Step::kSize) {
      block<kRows, kColumnGroup>(advanced(at, column), row_size, slopes + column, chains + column);
    }
    for (; width - column >= Step::kSize; column += Step::kSize) {
      block<kRows, 1>(advanced(at, column), row_size, slopes + column, chains + column);
    }
    if (const int64_t left = width - column; left > 0) {
      const bool overlaps = width >= Step::kSize;
      column = overlaps ? width - Step::kSize : column;
      for (int64_t row = 0; row < kRows; ++row) {
        const Operands last = advanced(at, row * row_size + column);
        Chain terms = zeros();
        overlaps ? overlapping_step(last, left, load_chain(slopes + column), terms)
                 : short_step(last, left, load_chain(slopes + column), terms);
        add_to(chains + column, terms);
      }
    }
  }

  // kColumns steps of neighbouring columns in kRows rows. Slopes are loaded and sums updated once.
  template <int64_t kRows, int64_t kColumns>
  C10_ALWAYS_INLINE static void block(
      const Operands& start, int64_t row_size, const acc_t* slopes, acc_t* chains) {
    static_assert(kRows == 1 || kColumns == 1);
    constexpr size_t kSteps = kRows * kColumns;
    std::array<Operands, kSteps> at;
    std::array<Chain, kSteps> slope;
    for (size_t s = 0; s < kSteps; ++s) {
      at[s] = advanced(start, s * (kRows == 1 ? Step::kSize : row_size));
      slope[s] = load_chain(slopes + (kRows == 1 ? s * Step::kSize : 0));
    }
    std::array<Chain, kSteps> terms;
    terms.fill(zeros());
    steps<kSteps>(at, slope, terms);
    for (int64_t column = 0; column < kColumns; ++column) {
      add_to(chains + column * Step::kSize, kColumns == 1 ? tree(terms) : terms[column]);
    }
  }

  C10_ALWAYS_INLINE static Chain load_chain(const acc_t* from) {
    Chain chain;
    for (int v = 0; v < kVectors; ++v) {
      chain[v] = Vec::loadu(from + v * Vec::size());
    }
    return chain;
  }

  C10_ALWAYS_INLINE static void add_to(acc_t* sums, const Chain& terms) {
    if constexpr (Op::kSums) {
      for (int v = 0; v < kVectors; ++v) {
        (Vec::loadu(sums + v * Vec::size()) + terms[v]).store(sums + v * Vec::size());
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

  // Sums the columns of each channel: joined rows first, then neighbours.
  void put_columns(const Task& task, int64_t padded, ColumnState& state) const {
    Scratch<WideSum<acc_t>, kColumnStorage> columns(0);
    for (int64_t i = 0; i < padded / Vec::size(); ++i) {
      state.wide[i].store(columns.data() + i * Vec::size());
    }
    const int64_t inner = tasks_.view().inner;
    const int64_t width = task.channels.size() * inner;
    WideSum<acc_t>* const first = columns.data();
    for (int64_t j = 1; j < tasks_.joined(); ++j) {
      const WideSum<acc_t>* const next = first + j * width;
      for (int64_t i = 0; i < width; ++i) {
        first[i].add(next[i]);
      }
    }
    for (int64_t c = 0; c < task.channels.size(); ++c) {
      WideSum<acc_t> sum = first[c * inner];
      for (int64_t i = 1; i < inner; ++i) {
        sum.add(first[c * inner + i]);
      }
      sums_.put(task.split, task.channels.first + c, sum);
    }
  }

  const ChannelTasks& tasks_;
  const Operands& operands_;
  const Sums& sums_;
};

}  // namespace torch_ext::cpu::CPU_CAPABILITY
