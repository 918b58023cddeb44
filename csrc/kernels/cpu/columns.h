// The traversal of short runs: rows of columns, each column with its own channel, so that 3
// channels fill packs as well as 256 do. Determines loads, tails and the order of sums; knows
// neither the operation nor threads.
//
// (Processing two rows at once, with the params and chains of their columns loaded once for both,
// was 12 % faster where all tensors fit the second-level cache, and up to 10 % slower beyond it,
// because the prefetchers follow one stream of addresses better than several. Three or four rows
// were no faster than two. Twelve, so that chains stay in registers: as fast as one, half as fast
// beyond that cache.)
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "kernels/cpu/group.h"
#include "kernels/cpu/plan.h"
#include "kernels/cpu/scratch.h"

namespace torch_ext::cpu::CPU_CAPABILITY {

// The second level of columns' sums, in natural order: doubles, and for double terms also what they
// lost to rounding.
template <typename compute_t, int kSums>
class ColumnSums {
 public:
  ColumnSums(Scratch& scratch, int64_t columns)
      : columns_(columns),
        values_(scratch.take<double>(kSums * columns)),
        corrections_(kCorrected ? scratch.take<double>(kSums * columns) : nullptr) {}

  static int64_t bytes(int64_t columns) {
    return (kCorrected ? 2 : 1) * Scratch::size<double>(kSums * columns);
  }

  void clear(int64_t columns) {
    for (int s = 0; s < kSums; ++s) {
      std::fill_n(values_ + s * columns_, columns, 0.0);
      if constexpr (kCorrected) {
        std::fill_n(corrections_ + s * columns_, columns, 0.0);
      }
    }
  }

  // One chain for each column of a vector.
  C10_ALWAYS_INLINE void add(int s, int64_t column, const Vector<compute_t>& chain) {
    double* const values = values_ + s * columns_ + column;
    if constexpr (kCorrected) {
      double* const corrections = corrections_ + s * columns_ + column;
      const TwoSum<Vector<double>> next(Vector<double>::load(values), chain);
      next.sum.store(values);
      (Vector<double>::load(corrections) + next.error).store(corrections);
    } else {
      const auto [low, high] = widened(chain);
      constexpr int kHalf = Vector<double>::kSize;
      (Vector<double>::load(values) + low).store(values);
      (Vector<double>::load(values + kHalf) + high).store(values + kHalf);
    }
  }

  // Adds the sums of `count` columns to those of others.
  void add_columns(int s, int64_t to, int64_t from, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      Accumulator<compute_t> sum = at(s, to + i);
      sum.add(at(s, from + i));
      values_[s * columns_ + to + i] = sum.value;
      if constexpr (kCorrected) {
        corrections_[s * columns_ + to + i] = sum.correction;
      }
    }
  }

  // The sum of neighbours.
  Accumulator<compute_t> total(int s, int64_t first, int64_t count) const {
    Accumulator<compute_t> sum = at(s, first);
    for (int64_t i = 1; i < count; ++i) {
      sum.add(at(s, first + i));
    }
    return sum;
  }

 private:
  static constexpr bool kCorrected = std::is_same_v<compute_t, double>;

  C10_ALWAYS_INLINE Accumulator<compute_t> at(int s, int64_t column) const {
    if constexpr (kCorrected) {
      return {values_[s * columns_ + column], corrections_[s * columns_ + column]};
    } else {
      return {values_[s * columns_ + column]};
    }
  }

  int64_t columns_;
  double* values_;
  double* corrections_;
};

template <typename Op, typename scalar_t>
class Columns {
 public:
  Columns(const Plan& plan, const Operands<Op, scalar_t>& operands)
      : plan_(plan), operands_(operands), tensors_(G::tensors_of(plan, operands)) {}

  // Tasks first ... last - 1.
  void run(int64_t first, int64_t last) const {
    const int64_t packs = cut_of(plan_[first]).most_packs();
    Scratch scratch(State::bytes(packs));
    State state(scratch, packs);
    Range spread{0, 0};
    for (int64_t i = first; i < last; ++i) {
      const Task task = plan_[i];
      const Cut cut = cut_of(task);
      if (spread.first != task.channels.first || spread.last != task.channels.last) {
        spread_params(task, cut, state);
        spread = task.channels;
      }
      run(task, cut, state);
    }
  }

 private:
  using G = Group<Op, scalar_t>;
  using P = typename G::P;
  using V = typename G::V;
  using Params = std::array<typename G::Params, P::kVectors>;
  using Chains = typename G::Chains;
  using compute_t = typename G::compute_t;

  // Packs that are processed together: as many as registers hold.
  static constexpr int64_t kGroup = Op::kSums + Op::kParams > 2 ? 1 : 4 / P::kVectors;

  // How the columns of a task are divided into packs. The columns after the whole packs belong to
  // two more: an incomplete pack, for a row that ends there, and a last pack that overlaps the one
  // before it, for the other rows.
  struct Cut {
    int64_t columns;
    int64_t whole = columns / P::kSize;
    int64_t left = columns % P::kSize;

    bool reaches_back() const { return whole > 0 && left > 0; }
    int64_t last_pack() const { return whole + 1; }
    int64_t last_column() const { return columns - P::kSize; }
    int64_t packs() const { return whole + (left > 0) + reaches_back(); }
    // The most packs for this many columns or fewer. (Fewer columns may need more packs: 16 are two
    // packs of 8, but 15 are one and two for the remaining seven.)
    int64_t most_packs() const { return whole + 2; }
  };

  Cut cut_of(const Task& task) const {
    return {plan_.joined() * task.channels.size() * plan_.view().inner};
  }

  // Of a task's columns. Params stay for tasks of the same channels.
  struct State {
    Params* params;                         // pack by pack
    Chains* chains;                         // pack by pack
    compute_t* values;                      // column by column: of one param
    ColumnSums<compute_t, Op::kSums> sums;  // column by column: the second level

    State(Scratch& scratch, int64_t packs)
        : params(scratch.take<Params>(packs)),
          chains(scratch.take<Chains>(packs)),
          values(scratch.take<compute_t>((packs + 1) * P::kSize)),
          sums(scratch, packs * P::kSize) {}

    static int64_t bytes(int64_t packs) {
      return Scratch::size<Params>(packs) + Scratch::size<Chains>(packs) +
             Scratch::size<compute_t>((packs + 1) * P::kSize) +
             ColumnSums<compute_t, Op::kSums>::bytes(packs * P::kSize);
    }
  };

  void run(const Task& task, const Cut& cut, State& state) const {
    const ChannelView& view = plan_.view();
    if constexpr (Op::kSums > 0) {
      std::fill_n(state.chains, cut.packs(), Chains{});
      state.sums.clear(cut.packs() * P::kSize);
    }
    const int64_t pitch = plan_.row_size();
    const int64_t first_column = task.channels.first * view.inner;
    int64_t in_chain = 0;
    for (int64_t r = task.rows.first; r < task.rows.last; ++r) {
      const int64_t offset = r * pitch + first_column;
      // The very last row may be a short one.
      row(offset, std::min(cut.columns, view.numel() - offset), cut, state);
      if (Op::kSums > 0 && ++in_chain == kChain<compute_t>) {
        gather(cut, state);
        in_chain = 0;
      }
    }
    if constexpr (Op::kSums > 0) {
      gather(cut, state);
      put_sums(task, cut, state);
    }
  }

  // Each column's params, in its lane of its pack.
  void spread_params(const Task& task, const Cut& cut, State& state) const {
    const int64_t inner = plan_.view().inner;
    const int64_t channels = task.channels.size();
    compute_t* const values = state.values;
    for (int p = 0; p < Op::kParams; ++p) {
      const ChannelInput<scalar_t> param = operands_.params[p];
      for (int64_t c = 0; c < channels; ++c) {
        values[c] = param[task.channels.first + c];
      }
      for (int64_t c = inner > 1 ? channels - 1 : -1; c >= 0; --c) {
        std::fill_n(values + c * inner, inner, values[c]);
      }
      for (int64_t j = 1; j < plan_.joined(); ++j) {
        std::copy_n(values, channels * inner, values + j * channels * inner);
      }
      std::fill(values + cut.columns, values + (cut.whole + 1) * P::kSize, compute_t(0));
      if (cut.reaches_back()) {
        std::copy_n(values + cut.last_column(), P::kSize, values + cut.last_pack() * P::kSize);
      }
      for (int64_t pack = 0; pack < cut.packs(); ++pack) {
        typename P::Widened natural;
        unrolled<P::kVectors>(TORCH_EXT_UNROLLED(v) {
          natural[v] = V::load(values + pack * P::kSize + v * V::kSize);
        });
        const typename P::Widened lanes = P::from_natural(natural);
        unrolled<P::kVectors>(TORCH_EXT_UNROLLED(v) { state.params[pack][v][p] = lanes[v]; });
      }
    }
  }

  // A row of `width` columns.
  void row(int64_t offset, int64_t width, const Cut& cut, State& state) const {
    typename G::Tensors tensors = tensors_;  // (in registers: a SIMD store may alias memory)
    Params* const params = state.params;
    Chains* const chains = state.chains;
    const int64_t packs = width / P::kSize;
    int64_t pack = 0;
    for (; pack + kGroup <= packs; pack += kGroup) {
      const int64_t first = offset + pack * P::kSize;
      G::prefetch(tensors, first, first + kGroup * P::kSize);
      group<kGroup>(tensors, offset + pack * P::kSize, params + pack, chains + pack);
    }
    tensors.bypass_caches = false;
    for (; pack < packs; ++pack) {
      group<1>(tensors, offset + pack * P::kSize, params + pack, chains + pack);
    }
    if (width == cut.columns && cut.reaches_back()) {
      // Writing elements again changes nothing; put_sums counts only those of the pack that are
      // new.
      const int64_t last = cut.last_pack();
      group<1>(tensors, offset + cut.last_column(), params + last, chains + last);
    } else if (pack * P::kSize < width) {
      G::run_part(
          tensors, offset + pack * P::kSize, width - pack * P::kSize,
          [&](auto v) -> const auto& { return params[pack][v]; }, chains[pack]);
    }
  }

  // Neighbouring packs, with the params and chains of each, which are in registers meanwhile.
  template <size_t kPacks>
  C10_ALWAYS_INLINE static void group(
      const typename G::Tensors& tensors, int64_t offset, const Params* params, Chains* chains) {
    std::array<int64_t, kPacks> offsets;
    std::array<Params, kPacks> params_here;
    std::array<Chains, kPacks> chains_here;
    unrolled<kPacks>(TORCH_EXT_UNROLLED(p) {
      offsets[p] = offset + p * P::kSize;
      params_here[p] = params[p];
      if constexpr (Op::kSums > 0) {
        chains_here[p] = chains[p];
      }
    });
    G::run(
        tensors, offsets, [&](auto p, auto v) -> const auto& { return params_here[p][v]; },
        [&](auto p, auto v) { return Sums(chains_here[p][v], kAllLanes); });
    if constexpr (Op::kSums > 0) {
      unrolled<kPacks>(TORCH_EXT_UNROLLED(p) { chains[p] = chains_here[p]; });
    }
  }

  // Adds the chains to the second level and begins them anew.
  static void gather(const Cut& cut, State& state) {
    for (int64_t pack = 0; pack < cut.packs(); ++pack) {
      unrolled<Op::kSums>(TORCH_EXT_UNROLLED(s) {
        typename P::Widened chains;
        unrolled<P::kVectors>(TORCH_EXT_UNROLLED(v) { chains[v] = state.chains[pack][v][s]; });
        const typename P::Widened natural = P::to_natural(chains);
        unrolled<P::kVectors>(TORCH_EXT_UNROLLED(v) {
          state.sums.add(s, pack * P::kSize + v * V::kSize, natural[v]);
        });
      });
      state.chains[pack] = {};
    }
  }

  // Adds the columns of each channel: joined rows first, then neighbours.
  void put_sums(const Task& task, const Cut& cut, State& state) const {
    const int64_t inner = plan_.view().inner;
    const int64_t width = task.channels.size() * inner;
    for (int s = 0; s < Op::kSums; ++s) {
      if (cut.reaches_back()) {
        const int64_t end = (cut.last_pack() + 1) * P::kSize;
        state.sums.add_columns(s, cut.columns - cut.left, end - cut.left, cut.left);
      }
      for (int64_t j = 1; j < plan_.joined(); ++j) {
        state.sums.add_columns(s, 0, j * width, width);
      }
      for (int64_t c = 0; c < task.channels.size(); ++c) {
        operands_.partials.at(task.split, s, task.channels.first + c) =
            state.sums.total(s, c * inner, inner);
      }
    }
  }

  const Plan& plan_;
  const Operands<Op, scalar_t>& operands_;
  const typename G::Tensors tensors_;
};

}  // namespace torch_ext::cpu::CPU_CAPABILITY
