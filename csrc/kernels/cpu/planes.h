// The traversal of long runs of one channel: its params stay in registers, and so do the sums of a
// run. Determines loads, tails and the order of sums; knows neither the operation nor threads.
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

  // Packs that are processed together, with independent chains that keep the processor busy: four
  // chains in all or, where an operation has more sums, one for each sum.
  static constexpr int64_t kGroup = Op::kSums <= 1   ? 4 / P::kVectors
                                    : Op::kSums == 2 ? 2 / P::kVectors
                                                     : 1;
  static_assert(kGroup >= 1 && kGroup <= 4, "run_of() tells up to three whole packs apart");
  // Chains are as long as the error bound allows; without sums this only limits the loop.
  static constexpr int64_t kRounds = Op::kSums ? kChain<compute_t> : INT64_MAX;

  // How a run is divided: groups, whole packs, and elements that fill no pack. All runs of a task
  // are alike.
  struct Run {
    int64_t count;
    int64_t groups = count / (kGroup * P::kSize);
    int64_t whole = count / P::kSize % kGroup;
    int64_t tail = count % P::kSize;
    std::array<Mask<compute_t>, P::kVectors> tail_lanes = P::lanes(P::kSize - tail, P::kSize);

    explicit Run(int64_t elements) : count(elements) {}
  };

  void run(const Task& task) const {
    const int64_t channels = task.channels.size();
    const int64_t inner = plan_.view().inner;
    const Run shape(task.inner.size());
    Scratch scratch(Scratch::size<Values>(channels) + Scratch::size<RunSums>(channels));
    Values* const values = scratch.take<Values>(channels);
    RunSums* const sums = scratch.take<RunSums>(channels);
    for (int64_t c = 0; c < channels; ++c) {
      unrolled<Op::kParams>(
          TORCH_EXT_UNROLLED(p) { values[c][p] = operands_.params[p][task.channels.first + c]; });
      sums[c] = {};
    }
    const typename G::Tensors tensors = tensors_;  // in registers: a SIMD store may alias memory
    const int64_t row_size = plan_.view().channels * inner;
    const int64_t first_run = task.channels.first * inner + task.inner.first;
    for (int64_t row = task.rows.first; row < task.rows.last; ++row) {
      int64_t offset = row * row_size + first_run;
      for (int64_t c = 0; c < channels; ++c) {
        Params params;
        unrolled<Op::kParams>(TORCH_EXT_UNROLLED(p) { params[p] = V(values[c][p]); });
        if (shape.count < P::kSize) {
          short_run_of(tensors, offset, shape.count, params, sums[c]);
        } else {
          run_of(tensors, offset, shape, params, sums[c]);
        }
        offset += inner;
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

  // A run of fewer elements than a pack has.
  static void short_run_of(
      const typename G::Tensors& tensors,
      int64_t offset,
      int64_t count,
      const Params& params,
      RunSums& sums) {
    std::array<Chains, 1> chains{};
    G::run_part(tensors, offset, count, [&](auto) -> const Params& { return params; }, chains[0]);
    add(chains, sums);
  }

  // Neighbours of one channel.
  C10_ALWAYS_INLINE static void run_of(
      const typename G::Tensors& tensors,
      int64_t offset,
      const Run& run,
      const Params& params,
      RunSums& sums) {
    std::array<Chains, kGroup> chains{};
    for (int64_t left = run.groups; left > 0;) {
      const int64_t rounds = std::min<int64_t>(kRounds, left);
      for (int64_t round = 0; round < rounds; ++round) {
        group<kGroup, kGroup>(tensors, offset, run, params, chains);
        offset += kGroup * P::kSize;
      }
      left -= rounds;
      if (left > 0) {
        add(chains, sums);
        chains = {};
      }
    }
    // The remainder is less than a group. It adds one more term to the chains.
    typename G::Tensors to_cache = tensors;
    to_cache.bypass_caches = false;
    switch (run.whole) {
      case 0:
        rest<0>(to_cache, offset, run, params, chains);
        break;
      case 1:
        rest<1>(to_cache, offset, run, params, chains);
        break;
      case 2:
        rest<2>(to_cache, offset, run, params, chains);
        break;
      default:
        rest<3>(to_cache, offset, run, params, chains);
    }
    add(chains, sums);
  }

  template <int64_t kWhole>
  C10_ALWAYS_INLINE static void rest(
      const typename G::Tensors& tensors,
      int64_t offset,
      const Run& run,
      const Params& params,
      std::array<Chains, kGroup>& chains) {
    if constexpr (kWhole < kGroup) {
      if (run.tail == 0) {
        group<kWhole, kWhole>(tensors, offset, run, params, chains);
      } else {
        group<kWhole + 1, kWhole>(tensors, offset, run, params, chains);
      }
    }
  }

  // kWhole packs from `offset` on and, if kPacks is larger, one that ends at the run's end and
  // overlaps those before it. Writing elements again changes nothing; only the new ones add terms.
  template <size_t kPacks, int64_t kWhole>
  C10_ALWAYS_INLINE static void group(
      const typename G::Tensors& tensors,
      int64_t offset,
      const Run& run,
      const Params& params,
      std::array<Chains, kGroup>& chains) {
    std::array<int64_t, kPacks> offsets;
    unrolled<kPacks>(TORCH_EXT_UNROLLED(p) {
      offsets[p] = offset + p * P::kSize - (p < kWhole ? 0 : P::kSize - run.tail);
    });
    G::run(
        tensors, offsets, [&](auto, auto) -> const Params& { return params; },
        [&](auto p) -> Chains& { return chains[p]; },
        [&](auto p) -> const auto& {
          if constexpr (p < kWhole) {
            return kAllLanes;
          } else {
            return run.tail_lanes;
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
