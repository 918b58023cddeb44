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
  using acc_t = typename Steps::acc_t;
  using Vec = typename Steps::Vec;
  using Chain = typename Steps::Chain;
  using Operands = typename Steps::Operands;
  using Sums = ChannelSums<acc_t, weight_t>;
  static constexpr int kVectors = Steps::kVectors;
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
  static constexpr int64_t kRowGroup = Op::kSums ? kGroup : 1;
  static constexpr int64_t kColumnGroup = kGroup / kRowGroup;
  static constexpr int64_t kColumnStorage = tuning::kMaxColumns + 64;  // steps may pass the end

  // Slopes and running sums of a task's columns. Slopes stay for tasks of the same channels.
  struct ColumnState {
    Range channels{0, 0};
    Scratch<acc_t, kColumnStorage> slopes;
    Scratch<acc_t, kColumnStorage> chains;
    Scratch<WideLanes<acc_t>, kColumnStorage / Vec::size()> wide;
  };

  void run(const Task& task, ColumnState& state) const {
    const ChannelView& view = tasks_.view();
    const int64_t first_column = task.channels.first * view.inner;
    const int64_t count = tasks_.joined() * task.channels.size() * view.inner;
    const int64_t padded = ceil_div(count, Step::kSize) * Step::kSize;
    if (state.channels != task.channels) {
      spread_slopes(task, state.slopes.data());
      std::fill(state.slopes.data() + count, state.slopes.data() + padded, acc_t(0));
      state.channels = task.channels;
    }
    if constexpr (Op::kSums) {
      state.chains.reset(padded);
      state.wide.reset(padded / Vec::size());
    }

    int pending = 0;
    int64_t row = task.rows.first;
    const auto advance = [&]<int64_t kRows>(std::integral_constant<int64_t, kRows>, int64_t width) {
      rows<kRows>(
          Steps::advanced(operands_, row * tasks_.row_size() + first_column), tasks_.row_size(),
          width, state);
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

  // kRows rows, `row_size` elements apart, of which the first begins at `start`; `width` columns of
  // each.
  template <int64_t kRows>
  static void rows(const Operands& start, int64_t row_size, int64_t width, ColumnState& state) {
    const Operands at = start;
    const acc_t* const slopes = state.slopes.data();
    acc_t* const chains = state.chains.data();
    int64_t column = 0;
    for (; width - column >= kColumnGroup * Step::kSize; column += kColumnGroup * Step::kSize) {
      block<kRows, kColumnGroup>(
          Steps::advanced(at, column), row_size, slopes + column, chains + column);
    }
    for (; width - column >= Step::kSize; column += Step::kSize) {
      block<kRows, 1>(Steps::advanced(at, column), row_size, slopes + column, chains + column);
    }
    if (const int64_t left = width - column; left > 0) {
      const bool overlaps = width >= Step::kSize;
      column = overlaps ? width - Step::kSize : column;
      for (int64_t row = 0; row < kRows; ++row) {
        const Operands last = Steps::advanced(at, row * row_size + column);
        Chain terms = Steps::zeros();
        overlaps ? Steps::overlapping_step(last, left, load_chain(slopes + column), terms)
                 : Steps::short_step(last, left, load_chain(slopes + column), terms);
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
      at[s] = Steps::advanced(start, s * (kRows == 1 ? Step::kSize : row_size));
      slope[s] = load_chain(slopes + (kRows == 1 ? s * Step::kSize : 0));
    }
    std::array<Chain, kSteps> terms;
    terms.fill(Steps::zeros());
    Steps::template steps<kSteps>(at, slope, terms);
    for (int64_t column = 0; column < kColumns; ++column) {
      add_to(chains + column * Step::kSize, kColumns == 1 ? Steps::tree(terms) : terms[column]);
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
    Scratch<WideSum<acc_t>, kColumnStorage> columns;
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
