// Walks short runs: rows of columns, each column with its own slope, so that 3 channels fill
// vectors as well as 256 do. Owns loads, tails and the order of sums; knows neither the operation
// nor threads.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "kernels/cpu/channel_tasks.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/steps.h"
#include "kernels/cpu/wide_lanes.h"

namespace torch_ext::cpu::CPU_CAPABILITY {

template <typename Op, typename scalar_t, typename weight_t>
class ColumnsWalker {
 public:
  using Steps = StepsOf<Op, scalar_t, weight_t>;
  using Step = typename Steps::Step;
  using WideStep = typename Steps::WideStep;
  using acc_t = typename Steps::acc_t;
  using Vec = typename WideStep::Vec;
  using Operands = typename Steps::Operands;
  using Place = typename Steps::Place;
  using Sums = ChannelSums<acc_t, weight_t>;
  static constexpr int64_t kSize = Step::kSize;
  static constexpr int kVectors = WideStep::kVectors;
  static constexpr int kGroup = Steps::kGroup;

  ColumnsWalker(const ChannelTasks& tasks, const Operands& operands, const Sums& sums)
      : tasks_(tasks), operands_(operands), sums_(sums) {}

  // Tasks first ... last - 1.
  void run(int64_t first, int64_t last) const {
    ColumnState state;
    for (int64_t task = first; task < last; ++task) {
      run(tasks_[task], state);
    }
  }

 private:
  static constexpr int64_t kColumnStorage =
      (Op::kSums ? tuning::kMaxSumColumns : tuning::kMaxColumns) + 2 * kSize;
  static constexpr int64_t kSumStorage = Op::kSums ? kColumnStorage : kSize;

  // The columns of a task cut into steps. What is left over behind the whole ones belongs to two
  // more: a begun step, for a row that ends there, and a last one that reaches back, for the
  // others.
  struct Cut {
    int64_t columns;
    int64_t whole = columns / kSize;
    int64_t left = columns % kSize;

    bool reaches_back() const { return whole > 0 && left > 0; }
    int64_t begun_step() const { return whole; }
    int64_t last_step() const { return whole + 1; }
    int64_t last_column() const { return columns - kSize; }
    int64_t steps() const { return whole + (left > 0) + reaches_back(); }
  };

  // Slopes and running sums of a task's columns, step by step. Slopes stay for tasks of the same
  // channels.
  struct ColumnState {
    Range channels{0, 0};
    Scratch<acc_t, kColumnStorage> slopes;  // in wide order, like the chains
    Scratch<acc_t, kSumStorage> chains;
    Scratch<WideLanes<acc_t>, kSumStorage / Vec::size()> wide;  // in natural order
  };

  void run(const Task& task, ColumnState& state) const {
    const ChannelView& view = tasks_.view();
    const int64_t first_column = task.channels.first * view.inner;
    const Cut cut{tasks_.joined() * task.channels.size() * view.inner};
    if (state.channels != task.channels) {
      spread_slopes(task, cut, state.slopes.data());
      state.channels = task.channels;
    }
    if constexpr (Op::kSums) {
      state.chains.reset(cut.steps() * kSize);
      state.wide.reset(cut.steps() * kVectors);
    }

    int pending = 0;
    for (int64_t r = task.rows.first; r < task.rows.last; ++r) {
      // The very last row may be a short one.
      const int64_t width =
          std::min(cut.columns, view.numel() - (r * tasks_.row_size() + first_column));
      row(Steps::advanced(operands_.begin, r * tasks_.row_size() + first_column), width, cut,
          state);
      if (Op::kSums && ++pending == kChain<acc_t>) {
        widen(cut, state);
        pending = 0;
      }
    }
    if constexpr (Op::kSums) {
      widen(cut, state);
      put_columns(task, cut, state);
    }
  }

  void spread_slopes(const Task& task, const Cut& cut, acc_t* slopes) const {
    const int64_t channels = task.channels.size();
    const int64_t inner = tasks_.view().inner;
    const weight_t* const weight = operands_.weight + task.channels.first;
    for (int64_t c = 0; c < channels; ++c) {
      std::fill_n(slopes + c * inner, inner, Steps::slope(weight[c]));
    }
    for (int64_t j = 1; j < tasks_.joined(); ++j) {
      std::copy_n(slopes, channels * inner, slopes + j * channels * inner);
    }
    if (cut.left > 0) {
      std::fill(slopes + cut.columns, slopes + (cut.begun_step() + 1) * kSize, acc_t(0));
    }
    if (cut.reaches_back()) {
      std::copy_n(slopes + cut.last_column(), kSize, slopes + cut.last_step() * kSize);
    }
    if constexpr (WideStep::kEvenOdd) {
      for (int64_t step = 0; step < cut.steps(); ++step) {
        WideStep::load(slopes + step * kSize).ordered().store(slopes + step * kSize);
      }
    }
  }

  // A row of `width` columns that begins at `start`.
  void row(const Place& start, int64_t width, const Cut& cut, ColumnState& state) const {
    // (In locals, for a SIMD store may alias what lives in memory.)
    const Place at = start;
    const bool bypass_caches = operands_.bypass_caches;
    const acc_t* const slopes = state.slopes.data();
    acc_t* const chains = state.chains.data();
    int64_t column = 0;
    for (; width - column >= kGroup * kSize; column += kGroup * kSize) {
      steps<kGroup>(Steps::advanced(at, column), slopes + column, chains + column, bypass_caches);
    }
    for (; width - column >= kSize; column += kSize) {
      steps<1>(Steps::advanced(at, column), slopes + column, chains + column);
    }
    if (width == cut.columns && cut.reaches_back()) {
      // Mapping elements again changes nothing; of the step's sums, put_columns takes the new ones.
      const int64_t last = cut.last_step() * kSize;
      steps<1>(Steps::advanced(at, cut.last_column()), slopes + last, chains + last);
    } else if (column < width) {
      WideStep terms(acc_t(0));
      Steps::short_step(
          Steps::advanced(at, column), width - column, WideStep::load(slopes + column), terms);
      add_to(chains + column, terms);
    }
  }

  // kSteps steps of neighbouring columns.
  template <int64_t kSteps>
  C10_ALWAYS_INLINE static void steps(
      const Place& start, const acc_t* slopes, acc_t* chains, bool bypass_caches = false) {
    std::array<WideStep, kSteps> slope;
#pragma GCC unroll 8
    for (int64_t s = 0; s < kSteps; ++s) {
      slope[s] = WideStep::load(slopes + s * kSize);
    }
    auto terms = Steps::template zeros<kSteps>();
    Steps::template steps<kSteps>(
        Steps::template neighbours<kSteps>(start), slope, terms, bypass_caches);
#pragma GCC unroll 8
    for (int64_t s = 0; s < kSteps; ++s) {
      add_to(chains + s * kSize, terms[s]);
    }
  }

  C10_ALWAYS_INLINE static void add_to(acc_t* chain, const WideStep& terms) {
    if constexpr (Op::kSums) {
      (WideStep::load(chain) + terms).store(chain);
    }
  }

  static void widen(const Cut& cut, ColumnState& state) {
    for (int64_t step = 0; step < cut.steps(); ++step) {
      acc_t* const chain = state.chains.data() + step * kSize;
      const WideStep sums = WideStep::load(chain).natural();
      for (int v = 0; v < kVectors; ++v) {
        state.wide[step * kVectors + v].add(sums.vec[v]);
      }
      WideStep(acc_t(0)).store(chain);
    }
  }

  // Sums the columns of each channel: joined rows first, then neighbours.
  void put_columns(const Task& task, const Cut& cut, ColumnState& state) const {
    Scratch<WideSum<acc_t>, kSumStorage> columns;
    for (int64_t i = 0; i < cut.steps() * kVectors; ++i) {
      state.wide[i].store(columns.data() + i * Vec::size());
    }
    if (cut.reaches_back()) {
      const WideSum<acc_t>* const last = &columns[(cut.last_step() + 1) * kSize - cut.left];
      for (int64_t i = 0; i < cut.left; ++i) {
        columns[cut.columns - cut.left + i].add(last[i]);
      }
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
