// Goes through long runs of one channel: its params stay in registers, sums of a run in a few more.
// Owns loads, tails and the order of sums; knows neither the operation nor threads.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "kernels/cpu/group.h"
#include "kernels/cpu/plan.h"
#include "kernels/cpu/scratch.h"

namespace torch_ext::cpu::CPU_CAPABILITY {

template <typename Op, typename scalar_t>
class Planes {
 public:
  Planes(const Plan& plan, const Operands<Op, scalar_t>& operands)
      : plan_(plan),
        operands_(operands),
        tensors_{operands.inputs, operands.outputs, operands.bypass_caches} {}

  // Tasks first ... last - 1.
  void run(int64_t first, int64_t last) const {
    for (int64_t task = first; task < last; ++task) {
      run(plan_[task]);
    }
  }

 private:
  using G = Group<Op, scalar_t>;
  using P = typename G::P;
  using V = typename G::V;
  using Params = typename G::Params;
  using Chains = typename G::Chains;
  using compute_t = typename G::compute_t;
  using Values = std::array<compute_t, Op::kParams>;                    // of a channel
  using RunSums = std::array<VectorAccumulator<compute_t>, Op::kSums>;  // of a channel
  using TailLanes = std::array<Mask<compute_t>, P::kVectors>;

  // Packs taken together: independent chains that keep the processor busy, four in all or, where
  // an operation has more sums, one for each.
  static constexpr int64_t kGroup = Op::kSums <= 1   ? 4 / P::kVectors
                                    : Op::kSums == 2 ? 2 / P::kVectors
                                                     : 1;
  // As long as accuracy allows; without sums it only bounds the loop.
  static constexpr int64_t kRounds = Op::kSums ? kChain<compute_t> : INT64_MAX;

  void run(const Task& task) const {
    const int64_t channels = task.channels.size();
    const int64_t inner = plan_.view().inner;
    const int64_t count = task.inner.size();
    Scratch scratch(Scratch::size<Values>(channels) + Scratch::size<RunSums>(channels));
    Values* const values = scratch.take<Values>(channels);
    RunSums* const sums = scratch.take<RunSums>(channels);
    for (int64_t c = 0; c < channels; ++c) {
      unrolled<Op::kParams>(
          TORCH_EXT_UNROLLED(p) { values[c][p] = operands_.params[p][task.channels.first + c]; });
      sums[c] = {};
    }
    const typename G::Tensors tensors = tensors_;  // in registers: a SIMD store may alias memory
    const int64_t tail = count % P::kSize;
    const TailLanes tail_lanes = P::lanes(P::kSize - tail, P::kSize);
    for (int64_t row = task.rows.first; row < task.rows.last; ++row) {
      const int64_t run = row * plan_.view().channels + task.channels.first;
      for (int64_t c = 0; c < channels; ++c) {
        Params params;
        unrolled<Op::kParams>(TORCH_EXT_UNROLLED(p) { params[p] = V(values[c][p]); });
        run_of(tensors, (run + c) * inner + task.inner.first, count, params, tail_lanes, sums[c]);
      }
    }
    for (int64_t c = 0; c < channels; ++c) {
      for (int s = 0; s < Op::kSums; ++s) {
        std::array<Accumulator<compute_t>, V::kSize> lanes;
        sums[c][s].store(lanes.data());
        Accumulator<compute_t> sum{};
        for (const Accumulator<compute_t>& lane : lanes) {
          sum.add(lane);
        }
        operands_.partials.at(task.split, s, task.channels.first + c) = sum;
      }
    }
  }

  // Neighbours of one channel.
  C10_ALWAYS_INLINE static void run_of(
      const typename G::Tensors& tensors,
      int64_t offset,
      int64_t count,
      const Params& params,
      const TailLanes& tail_lanes,
      RunSums& sums) {
    int64_t left = count;
    std::array<Chains, kGroup> chains{};
    while (left >= kGroup * P::kSize) {
      const int64_t rounds = std::min<int64_t>(kRounds, left / (kGroup * P::kSize));
      for (int64_t round = 0; round < rounds; ++round) {
        group<kGroup, kGroup>(tensors, offset, 0, params, tail_lanes, chains);
        offset += kGroup * P::kSize;
      }
      left -= rounds * kGroup * P::kSize;
      if (left >= kGroup * P::kSize) {
        add(chains, sums);
        chains = {};
      }
    }
    // What is left is less than a group: some whole packs, and one that reaches back. It adds one
    // more term to the chains.
    if (count < P::kSize) {
      G::run_part(tensors, offset, left, [&](auto) -> const Params& { return params; }, chains[0]);
    } else if (left > 0) {
      typename G::Tensors to_cache = tensors;
      to_cache.bypass_caches = false;
      rest<0>(to_cache, offset, left, params, tail_lanes, chains);
    }
    add(chains, sums);
  }

  template <int64_t kWhole>
  C10_ALWAYS_INLINE static void rest(
      const typename G::Tensors& tensors,
      int64_t offset,
      int64_t left,
      const Params& params,
      const TailLanes& tail_lanes,
      std::array<Chains, kGroup>& chains) {
    if constexpr (kWhole + 1 < kGroup) {
      if (left >= (kWhole + 1) * P::kSize) {
        return rest<kWhole + 1>(tensors, offset, left, params, tail_lanes, chains);
      }
    }
    if (left == kWhole * P::kSize) {
      group<kWhole, kWhole>(tensors, offset, 0, params, tail_lanes, chains);
    } else {
      group<kWhole + 1, kWhole>(tensors, offset, left, params, tail_lanes, chains);
    }
  }

  // kWhole packs from `offset` on, and, if that is not all of kPacks, one that ends `left` elements
  // behind it. Writing elements again changes nothing; terms are taken of the new ones.
  template <size_t kPacks, int64_t kWhole>
  C10_ALWAYS_INLINE static void group(
      const typename G::Tensors& tensors,
      int64_t offset,
      int64_t left,
      const Params& params,
      const TailLanes& tail_lanes,
      std::array<Chains, kGroup>& chains) {
    std::array<int64_t, kPacks> offsets;
    unrolled<kPacks>(TORCH_EXT_UNROLLED(p) {
      offsets[p] = offset + (p < kWhole ? p * P::kSize : left - P::kSize);
    });
    G::run(
        tensors, offsets, [&](auto, auto) -> const Params& { return params; },
        [&](auto p) -> Chains& { return chains[p]; },
        [&](auto p) -> const auto& {
          if constexpr (p < kWhole) {
            return kAllLanes;
          } else {
            return tail_lanes;
          }
        });
  }

  // Adds up to four chains of each sum, as a tree.
  template <size_t kPacks>
  C10_ALWAYS_INLINE static void add(const std::array<Chains, kPacks>& chains, RunSums& sums) {
    unrolled<Op::kSums>(TORCH_EXT_UNROLLED(s) {
      std::array<V, kPacks> each;
      unrolled<kPacks>(TORCH_EXT_UNROLLED(p) {
        each[p] = chains[p][0][s];
        if constexpr (P::kVectors == 2) {
          each[p] = each[p] + chains[p][1][s];
        }
      });
      if constexpr (kPacks == 4) {
        sums[s].add((each[0] + each[1]) + (each[2] + each[3]));
      } else if constexpr (kPacks == 3) {
        sums[s].add((each[0] + each[1]) + each[2]);
      } else if constexpr (kPacks == 2) {
        sums[s].add(each[0] + each[1]);
      } else {
        sums[s].add(each[0]);
      }
    });
  }

  const Plan& plan_;
  const Operands<Op, scalar_t>& operands_;
  const typename G::Tensors tensors_;
};

}  // namespace torch_ext::cpu::CPU_CAPABILITY
