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
  static_assert(kGroup >= 1 && kGroup <= 4, "run() tells up to four packs apart");
  // Chains are as long as the error bound allows; without sums this only limits the loop.
  static constexpr int64_t kRounds = Op::kSums ? kChain<compute_t> : INT64_MAX;
  static constexpr int kMany = 2;

  // How a run of at least one pack is divided: whole groups, then one to kGroup packs, the last of
  // which ends at the run's end and overlaps those before it. Writing elements again changes
  // nothing; only the new ones add terms. All runs of a task are alike.
  struct Run {
    int64_t groups;
    int64_t packs;
    int64_t last;  // where the last pack begins, from the first element after the groups
    std::array<Mask<compute_t>, P::kVectors> last_lanes;

    explicit Run(int64_t count)
        : groups((count - 1) / (kGroup * P::kSize)),
          packs((count - 1) / P::kSize % kGroup + 1),
          last(count - groups * kGroup * P::kSize - P::kSize),
          last_lanes(P::lanes((packs - 1) * P::kSize - last, P::kSize)) {}
  };

  // What is known of the channels of a task.
  struct Channels {
    Values* values;
    RunSums* sums;
  };

  void run(const Task& task) const {
    const int64_t channels = task.channels.size();
    Scratch scratch(Scratch::size<Values>(channels) + Scratch::size<RunSums>(channels));
    const Channels of{scratch.take<Values>(channels), scratch.take<RunSums>(channels)};
    for (int64_t c = 0; c < channels; ++c) {
      unrolled<Op::kParams>(TORCH_EXT_UNROLLED(p) {
        of.values[c][p] = operands_.params[p][task.channels.first + c];
      });
      of.sums[c] = {};
    }
    if (task.inner.size() < P::kSize) {
      short_runs(task, of);
    } else {
      const Run run(task.inner.size());
      switch (run.packs) {
        case 1:
          runs_ending_in<1>(task, run, of);
          break;
        case 2:
          runs_ending_in<2>(task, run, of);
          break;
        case 3:
          runs_ending_in<3>(task, run, of);
          break;
        default:
          runs_ending_in<4>(task, run, of);
      }
    }
    for (int64_t c = 0; c < channels; ++c) {
      for (int s = 0; s < Op::kSums; ++s) {
        std::array<Accumulator<compute_t>, V::kSize> lanes;
        of.sums[c][s].store(lanes.data());
        Accumulator<compute_t> sum{};
        for (const Accumulator<compute_t>& lane : lanes) {
          sum.add(lane);
        }
        operands_.partials.at(task.split, s, task.channels.first + c) = sum;
      }
    }
  }

  // Calls visit(offset, params, sums) for each run of a task. (Visitors are inlined, so that what
  // they capture stays in registers.)
  template <typename Visit>
  C10_ALWAYS_INLINE void each_run(const Task& task, const Channels& of, const Visit& visit) const {
    const int64_t channels = task.channels.size();
    const int64_t inner = plan_.view().inner;
    const int64_t row_size = plan_.view().channels * inner;
    const int64_t first_run = task.channels.first * inner + task.inner.first;
    for (int64_t row = task.rows.first; row < task.rows.last; ++row) {
      int64_t offset = row * row_size + first_run;
      for (int64_t c = 0; c < channels; ++c) {
        Params params;
        unrolled<Op::kParams>(TORCH_EXT_UNROLLED(p) { params[p] = V(of.values[c][p]); });
        visit(offset, params, of.sums[c]);
        offset += inner;
      }
    }
  }

  // Runs of fewer elements than a pack has.
  void short_runs(const Task& task, const Channels& of) const {
    each_run(
        task, of,
        [&](int64_t offset, const Params& params, RunSums& sums) __attribute__((always_inline)) {
          std::array<Chains, 1> chains{};
          const auto params_of = [&](auto) -> const Params& { return params; };
          G::run_part(tensors_, offset, task.inner.size(), params_of, chains[0]);
          add(chains, sums);
        });
  }

  // Compiled for each shape of a short run: branches and loop counts at run time took as long as
  // its arithmetic (float32 7x7: forward 61 to 72 GB/s instead of 44, backward 51 instead of 32).
  // But not for x86 processors without AVX2, which are rare.
#if defined(CPU_CAPABILITY_DEFAULT) && defined(__x86_64__)
  static constexpr bool kForEachShape = false;
#else
  static constexpr bool kForEachShape = true;
#endif

  template <int64_t kPacks>
  void runs_ending_in(const Task& task, const Run& run, const Channels& of) const {
    if constexpr (kPacks <= kGroup && !kForEachShape) {
      return runs<kMany, kPacks>(task, run, of);
    } else if constexpr (kPacks <= kGroup) {
      switch (run.groups) {
        case 0:
          return runs<0, kPacks>(task, run, of);
        case 1:
          return runs<1, kPacks>(task, run, of);
        default:
          return runs<kMany, kPacks>(task, run, of);
      }
    }
  }

  template <int kGroups, int64_t kPacks>
  C10_NOINLINE void runs(const Task& task, const Run& run, const Channels& of) const {
    const typename G::Tensors tensors = tensors_;  // in registers: a SIMD store may alias memory
    const int64_t groups = kGroups < kMany ? kGroups : run.groups;
    const int64_t last = run.last;
    const auto last_lanes = run.last_lanes;
    each_run(
        task, of,
        [&](int64_t offset, const Params& params, RunSums& sums) __attribute__((always_inline)) {
          constexpr int64_t kChains = kGroups == 0 ? kPacks : kGroup;
          std::array<Chains, kChains> chains{};
          if constexpr (kGroups == 1) {
            group<kGroup>(tensors, offset, kAllLanes, (kGroup - 1) * P::kSize, params, chains);
            offset += kGroup * P::kSize;
          } else if constexpr (kGroups == kMany) {
            offset = whole_groups(tensors, offset, groups, params, chains, sums);
          }
          // It adds one more term to the chains.
          typename G::Tensors to_cache = tensors;
          to_cache.bypass_caches = false;
          group<kPacks>(to_cache, offset, last_lanes, last, params, chains);
          add(chains, sums);
        });
  }

  // Returns where they end.
  C10_ALWAYS_INLINE static int64_t whole_groups(
      const typename G::Tensors& tensors,
      int64_t offset,
      int64_t groups,
      const Params& params,
      std::array<Chains, kGroup>& chains,
      RunSums& sums) {
    for (int64_t left = groups; left > 0;) {
      const int64_t rounds = std::min<int64_t>(kRounds, left);
      for (int64_t round = 0; round < rounds; ++round) {
        group<kGroup>(tensors, offset, kAllLanes, (kGroup - 1) * P::kSize, params, chains);
        offset += kGroup * P::kSize;
      }
      left -= rounds;
      if (left > 0) {
        add(chains, sums);
        chains = {};
      }
    }
    return offset;
  }

  // Neighbouring packs from `offset` on; the last one begins at `offset` + `last`.
  template <size_t kPacks, size_t kChains, typename Lanes>
  C10_ALWAYS_INLINE static void group(
      const typename G::Tensors& tensors,
      int64_t offset,
      const Lanes& last_lanes,
      int64_t last,
      const Params& params,
      std::array<Chains, kChains>& chains) {
    std::array<int64_t, kPacks> offsets;
    unrolled<kPacks>(TORCH_EXT_UNROLLED(p) {
      offsets[p] = offset + (p + 1 < kPacks ? int64_t(p * P::kSize) : last);
    });
    G::run(
        tensors, offsets, [&](auto, auto) -> const Params& { return params; },
        [&](auto p) -> Chains& { return chains[p]; },
        [&](auto p) -> const auto& {
          if constexpr (p + 1 < kPacks || Op::kSums == 0) {
            return kAllLanes;
          } else {
            return last_lanes;
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
