// The traversal of long runs of one channel: its params stay in registers, and so do the sums of a
// run. Determines loads, tails and the order of sums; knows neither the operation nor threads.
//
// Neighbouring runs are divided into packs in one of two ways. Apart: each run for itself. All runs
// of a task are alike, so that code is compiled for their shape; but unless runs are whole packs,
// most packs lie across cache lines. Shared: packs are aligned as the tensors are, wherever a run
// begins, and a pack at the border of two runs belongs to both.
//
// Shared packs are better where the caches are bypassed, because non-temporal stores write whole
// lines, and on AVX-512, whose packs are lines, for operations with sums. (Zen 5, GB/s of the
// backward apart and shared, in cache: 4x128x7x7 74, 104; 4x64x14x14 125, 170. Beyond the caches:
// 64x256x14x14 37, 77. But a forward in cache: 4x128x7x7 163, 115, with AVX2 179, 115.)
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>

#include "kernels/cpu/group.h"
#include "kernels/cpu/plan.h"
#include "kernels/cpu/scratch.h"

namespace torch_ext::cpu::CPU_CAPABILITY {

template <typename Op, typename scalar_t>
class Planes {
 public:
  Planes(const Plan& plan, const Operands<Op, scalar_t>& operands)
      : plan_(plan), operands_(operands), tensors_(G::tensors_of(plan, operands)) {}

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
  static_assert(kGroup >= 1 && kGroup <= 4, "with_packs() tells up to four apart");
  // Chains are as long as the error bound allows; without sums this only limits the loop.
  static constexpr int64_t kRounds = Op::kSums ? kChain<compute_t> : INT64_MAX;
  static constexpr int kMany = 2;

  // What is known of the channels of a task.
  struct Channels {
    Values* values;
    RunSums* sums;
  };

  // A run of at least one pack: whole groups, then one to kGroup packs.
  struct Shape {
    int64_t groups;
    int64_t packs;

    explicit Shape(int64_t count)
        : groups((count - 1) / (kGroup * P::kSize)), packs((count - 1) / P::kSize % kGroup + 1) {}
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
    } else if (shares_packs(task)) {
      shared_runs(task, of);
    } else {
      runs_apart(task, of);
    }
    for (int64_t c = 0; c < channels; ++c) {
      for (int s = 0; s < Op::kSums; ++s) {
        operands_.partials.at(task.split, s, task.channels.first + c) = of.sums[c][s].total();
      }
    }
  }

  bool shares_packs(const Task& task) const {
    constexpr bool kPacksAreLines = kVectorBytes == 64;
    const bool are_whole_packs =
        task.inner.size() % P::kSize == 0 && plan_.view().inner % P::kSize == 0;
    return tensors_.bypass_caches || (kPacksAreLines && Op::kSums > 0 && !are_whole_packs);
  }

  int64_t first_element(const Task& task, int64_t row) const {
    const int64_t inner = plan_.view().inner;
    return (row * plan_.view().channels + task.channels.first) * inner + task.inner.first;
  }

  C10_ALWAYS_INLINE static Params params_of(const Channels& of, int64_t channel) {
    Params params;
    unrolled<Op::kParams>(TORCH_EXT_UNROLLED(p) { params[p] = V(of.values[channel][p]); });
    return params;
  }

  // Calls visit(offset, params, sums) for each run of a task. (Visitors are inlined, so that what
  // they capture stays in registers.)
  template <typename Visit>
  C10_ALWAYS_INLINE void each_run(const Task& task, const Channels& of, const Visit& visit) const {
    const int64_t channels = task.channels.size();
    const int64_t inner = plan_.view().inner;
    for (int64_t row = task.rows.first; row < task.rows.last; ++row) {
      int64_t offset = first_element(task, row);
      for (int64_t c = 0; c < channels; ++c) {
        visit(offset, params_of(of, c), of.sums[c]);
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
          const auto same_params = [&](auto) -> const Params& { return params; };
          G::run_part(tensors_, offset, task.inner.size(), same_params, chains[0]);
          add(chains, sums);
        });
  }

  // Calls run(packs) with a constant, 1 to kGroup.
  template <typename Body>
  C10_ALWAYS_INLINE static void with_packs(int64_t packs, const Body& run) {
    const auto if_possible = [&](auto number) __attribute__((always_inline)) {
      if constexpr (number <= kGroup) {
        run(number);
      }
    };
    switch (packs) {
      case 1:
        return if_possible(std::integral_constant<int, 1>());
      case 2:
        return if_possible(std::integral_constant<int, 2>());
      case 3:
        return if_possible(std::integral_constant<int, 3>());
      default:
        return if_possible(std::integral_constant<int, 4>());
    }
  }

  // Whole groups; returns where they end. The chains may have `terms` already.
  C10_ALWAYS_INLINE static int64_t whole_groups(
      const typename G::Tensors& tensors,
      int64_t at,
      int64_t groups,
      const Params& params,
      std::array<Chains, kGroup>& chains,
      RunSums& sums,
      int64_t terms) {
    for (; groups > 0; terms = 0) {
      const int64_t rounds = std::min(kRounds - terms, groups);
      for (int64_t round = 0; round < rounds; ++round) {
        group<kGroup>(tensors, at, params, chains);
        at += kGroup * P::kSize;
      }
      groups -= rounds;
      if (groups > 0) {
        add(chains, sums);
        chains = {};
      }
    }
    return at;
  }

  // ---- Apart ----

  // Compiled for each shape of a short run: branches and loop counts at run time took as long as
  // its arithmetic (float32 7x7: forward 61 to 72 GB/s instead of 44, backward 51 instead of 32).
  // But not for x86 processors without AVX2, which are rare.
#if defined(CPU_CAPABILITY_DEFAULT) && defined(__x86_64__)
  static constexpr bool kForEachShape = false;
#else
  static constexpr bool kForEachShape = true;
#endif

  void runs_apart(const Task& task, const Channels& of) const {
    const Shape shape(task.inner.size());
    with_packs(shape.packs, [&](auto packs) {
      if (kForEachShape && shape.groups == 0) {
        runs_apart<0, packs>(task, shape, of);
      } else if (kForEachShape && shape.groups == 1) {
        runs_apart<1, packs>(task, shape, of);
      } else {
        runs_apart<kMany, packs>(task, shape, of);
      }
    });
  }

  // The last pack of a run ends where the run does and overlaps those before it. Writing elements
  // again changes nothing; only the new ones add terms.
  template <int kGroups, int64_t kPacks>
  C10_NOINLINE void runs_apart(const Task& task, const Shape& shape, const Channels& of) const {
    const typename G::Tensors tensors = tensors_;  // in registers: a SIMD store may alias memory
    typename G::Tensors to_cache = tensors;
    to_cache.bypass_caches = false;
    const int64_t groups = kGroups < kMany ? kGroups : shape.groups;
    const int64_t last = task.inner.size() - groups * kGroup * P::kSize - P::kSize;
    const auto last_lanes = P::other_lanes((kPacks - 1) * P::kSize - last);
    each_run(
        task, of,
        [&](int64_t offset, const Params& params, RunSums& sums) __attribute__((always_inline)) {
          std::array<Chains, kGroups == 0 ? kPacks : kGroup> chains{};
          if constexpr (kGroups == 1) {
            group<kGroup>(tensors, offset, params, chains);
            offset += kGroup * P::kSize;
          } else if constexpr (kGroups == kMany) {
            offset = whole_groups(tensors, offset, groups, params, chains, sums, 0);
          }
          // It adds one more term to the chains.
          ending_group<kPacks>(to_cache, offset, last, params, chains, last_lanes);
          add(chains, sums);
        });
  }

  // Neighbouring packs from `at` on; the last one begins at `at` + `last`, and only these lanes of
  // it add terms.
  template <size_t kPacks, size_t kChains>
  C10_ALWAYS_INLINE static void ending_group(
      const typename G::Tensors& tensors,
      int64_t at,
      int64_t last,
      const Params& params,
      std::array<Chains, kChains>& chains,
      const typename P::Masks& last_lanes) {
    std::array<int64_t, kPacks> offsets;
    unrolled<kPacks>(TORCH_EXT_UNROLLED(p) {
      offsets[p] = at + (p + 1 < kPacks ? int64_t(p * P::kSize) : last);
    });
    G::run(
        tensors, offsets,
        [&](auto, auto) __attribute__((always_inline)) -> const Params& { return params; },
        [&](auto p, auto v) __attribute__((always_inline)) {
          if constexpr (p + 1 < kPacks || Op::kSums == 0) {
            return Sums(chains[p][v], kAllLanes);
          } else {
            return Sums(chains[p][v], last_lanes[v]);
          }
        });
  }

  // ---- Shared ----

  C10_NOINLINE void shared_runs(const Task& task, const Channels& of) const {
    const typename G::Tensors tensors = tensors_;  // in registers: a SIMD store may alias memory
    for (int64_t row = task.rows.first; row < task.rows.last; ++row) {
      neighbours(tensors, first_element(task, row), task.inner.size(), task.channels.size(), of);
    }
  }

  // One run of each channel, from element `at` on. Only the first and the last pack of all may lie
  // across an alignment; they overlap their neighbours.
  C10_ALWAYS_INLINE static void neighbours(
      const typename G::Tensors& tensors,
      int64_t at,
      int64_t size,
      int64_t channels,
      const Channels& of) {
    int64_t end = at;
    Params params = params_of(of, 0);
    Chains begun{};  // of a run to which the pack before it has added terms
    if (const int64_t head = -at & (P::kSize - 1)) {
      pack(tensors, at, params, begun, P::first_lanes(head));
      at += head;
    }
    for (int64_t c = 0; c < channels; ++c) {
      end += size;
      G::prefetch(tensors, at, end);
      std::array<Chains, kGroup> chains{begun};
      at = whole_groups(tensors, at, Shape(end - at).groups, params, chains, of.sums[c], 1);
      if (c + 1 < channels) {
        const Params next = params_of(of, c + 1);
        begun = {};
        at = end_shared(tensors, at, end, params, chains, next, begun);
        params = next;
      } else {
        end_alone(tensors, at, end, params, chains);
      }
      add(chains, of.sums[c]);
    }
  }

  // The last packs of a run, up to kGroup, of which the last one belongs to the next run as well;
  // returns where they end. They add one more term to the chains.
  C10_ALWAYS_INLINE static int64_t end_shared(
      const typename G::Tensors& tensors,
      int64_t at,
      int64_t end,
      const Params& params,
      std::array<Chains, kGroup>& chains,
      const Params& next,
      Chains& begun) {
    const int64_t packs = Shape(end - at).packs;
    const int64_t count = end - at - (packs - 1) * P::kSize;  // elements in the last one
    const auto lanes = P::first_lanes(count);
    const auto rest = P::other_lanes(count);
    std::array<Params, P::kVectors> both;
    unrolled<P::kVectors>(TORCH_EXT_UNROLLED(v) {
      unrolled<Op::kParams>(
          TORCH_EXT_UNROLLED(p) { both[v][p] = select(lanes[v], params[p], next[p]); });
    });
    with_packs(packs, [&](auto number) __attribute__((always_inline)) {
      const auto params_of_pack = [&](auto p, auto v)
                                      __attribute__((always_inline)) -> const Params& {
        if constexpr (p + 1 < number) {
          return params;
        } else {
          return both[v];
        }
      };
      const auto sums_of_pack = [&](auto p, auto v) __attribute__((always_inline)) {
        if constexpr (p + 1 < number) {
          return Sums(chains[p][v], kAllLanes);
        } else {
          return SplitSums(chains[p][v], lanes[v], begun[v], rest[v]);
        }
      };
      G::run(tensors, neighbouring<number>(at), params_of_pack, sums_of_pack);
    });
    return at + packs * P::kSize;
  }

  // The last packs of a run, up to kGroup, of which the last one ends where the run does. They add
  // one more term to the chains.
  C10_ALWAYS_INLINE static void end_alone(
      const typename G::Tensors& tensors,
      int64_t at,
      int64_t end,
      const Params& params,
      std::array<Chains, kGroup>& chains) {
    unrolled<kGroup>(TORCH_EXT_UNROLLED(p) {
      if (at < end) {
        const int64_t begin = std::min(at, end - P::kSize);
        pack(tensors, begin, params, chains[p], P::other_lanes(at - begin));
        at += P::kSize;
      }
    });
  }

  // ---- Packs ----

  // A pack at any element, of which only some lanes add terms.
  C10_ALWAYS_INLINE static void pack(
      const typename G::Tensors& tensors,
      int64_t at,
      const Params& params,
      Chains& chains,
      const typename P::Masks& lanes) {
    typename G::Tensors to_cache = tensors;
    to_cache.bypass_caches = false;
    G::run(
        to_cache, neighbouring<1>(at),
        [&](auto, auto) __attribute__((always_inline)) -> const Params& { return params; },
        [&](auto, auto v) __attribute__((always_inline)) { return Sums(chains[v], lanes[v]); });
  }

  // Neighbouring packs from `at` on.
  template <size_t kPacks>
  C10_ALWAYS_INLINE static void group(
      const typename G::Tensors& tensors,
      int64_t at,
      const Params& params,
      std::array<Chains, kPacks>& chains) {
    G::run(
        tensors, neighbouring<kPacks>(at),
        [&](auto, auto) __attribute__((always_inline)) -> const Params& { return params; },
        [&](auto p, auto v)
            __attribute__((always_inline)) { return Sums(chains[p][v], kAllLanes); });
  }

  template <size_t kPacks>
  C10_ALWAYS_INLINE static std::array<int64_t, kPacks> neighbouring(int64_t at) {
    std::array<int64_t, kPacks> offsets;
    unrolled<kPacks>(TORCH_EXT_UNROLLED(p) { offsets[p] = at + p * P::kSize; });
    return offsets;
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
