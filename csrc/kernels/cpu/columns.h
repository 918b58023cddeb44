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
  // Steps of a group come from several rows where they share a sum to update, else from one row.
  static constexpr int64_t kRowGroup = 1;
  static constexpr int64_t kColumnGroup = kGroup / kRowGroup;
  static constexpr int64_t kColumnStorage = tuning::kMaxColumns + 2 * kSize;

  // The columns of a task cut into steps. What is left over behind the whole ones belongs to two
  // more: a begun step, for a row that ends there, and a last one that reaches back, for the others.
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
    Scratch<acc_t, kColumnStorage> chains;
    Scratch<WideLanes<acc_t>, kColumnStorage / Vec::size()> wide;  // in natural order
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
    int64_t row = task.rows.first;
    const auto advance = [&]<int64_t kRows>(std::integral_constant<int64_t, kRows>, int64_t width) {
      rows<kRows>(
          Steps::advanced(operands_, row * tasks_.row_size() + first_column), tasks_.row_size(),
          cut, width, state);
      row += kRows;
      if (Op::kSums && ++pending == kChain) {
        widen(cut, state);
        pending = 0;
      }
    };
    // The very last row may be a short one.
    const int64_t whole_rows = view.numel() / tasks_.row_size();
    while (row + kRowGroup <= std::min(task.rows.last, whole_rows)) {
      advance(std::integral_constant<int64_t, kRowGroup>{}, cut.columns);
    }
    while (row < task.rows.last) {
      const int64_t width =
          row < whole_rows ? cut.columns : view.numel() - whole_rows * tasks_.row_size();
      advance(std::integral_constant<int64_t, 1>{}, width);
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

  // kRows rows, `row_size` elements apart, of which the first begins at `start`; `width` columns of
  // each.
  template <int64_t kRows>
  static void rows(
      const Operands& start, int64_t row_size, const Cut& cut, int64_t width, ColumnState& state) {
    const Operands at = start;
    const acc_t* const slopes = state.slopes.data();
    acc_t* const chains = state.chains.data();
    int64_t column = 0;
    for (; width - column >= kColumnGroup * kSize; column += kColumnGroup * kSize) {
      block<kRows, kColumnGroup>(
          Steps::advanced(at, column), row_size, slopes + column, chains + column);
    }
    for (; width - column >= kSize; column += kSize) {
      block<kRows, 1>(Steps::advanced(at, column), row_size, slopes + column, chains + column);
    }
    if (width == cut.columns && cut.reaches_back()) {
      const int64_t last = cut.last_step() * kSize;
      block<kRows, 1>(
          Steps::advanced(at, cut.last_column()), row_size, slopes + last, chains + last, cut.left);
    } else if (column < width) {
      for (int64_t row = 0; row < kRows; ++row) {
        WideStep terms(acc_t(0));
        Steps::short_step(
            Steps::advanced(at, row * row_size + column), width - column,
            WideStep::load(slopes + column), terms);
        add_to(chains + column, terms);
      }
    }
  }

  // kColumns steps of neighbouring columns in kRows rows. Slopes are loaded and sums updated once.
  // Only the last `counted` columns are summed.
  template <int64_t kRows, int64_t kColumns>
  C10_ALWAYS_INLINE static void block(
      const Operands& start,
      int64_t row_size,
      const acc_t* slopes,
      acc_t* chains,
      int64_t counted = kSize) {
    //static_assert(kRows == 1 || kColumns == 1);
    constexpr size_t kSteps = kRows * kColumns;
    std::array<Operands, kSteps> at;
    std::array<WideStep, kSteps> slope;
    for (size_t s = 0; s < kSteps; ++s) {
      at[s] = Steps::advanced(start, s * (kRows == 1 ? kSize : row_size));
      slope[s] = WideStep::load(slopes + (kRows == 1 ? s * kSize : 0));
    }
    auto terms = Steps::template zeros<kSteps>();
    Steps::template steps<kSteps>(at, slope, terms);
    if constexpr (kColumns == 1) {
      const WideStep sum = Steps::tree(terms);
      add_to(chains, counted == kSize ? sum : sum.last(counted));
    } else {
      for (int64_t column = 0; column < kColumns; ++column) {
        add_to(chains + column * kSize, terms[column]);
      }
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
    Scratch<WideSum<acc_t>, kColumnStorage> columns;
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
