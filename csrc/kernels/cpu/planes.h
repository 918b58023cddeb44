// Walks long runs of one slope: the slope stays in a register, sums of a run in a few more. Owns
// loads, tails and the order of sums; knows neither the operation nor threads.
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
class PlanesWalker {
 public:
  using Steps = StepsOf<Op, scalar_t, weight_t>;
  using Step = typename Steps::Step;
  using WideStep = typename Steps::WideStep;
  using acc_t = typename Steps::acc_t;
  using Operands = typename Steps::Operands;
  using Place = typename Steps::Place;
  using SharedSlope = typename Steps::SharedSlope;
  using Sums = ChannelSums<acc_t, weight_t>;
  static constexpr int kGroup = Steps::kGroup;

  PlanesWalker(const ChannelTasks& tasks, const Operands& operands, const Sums& sums)
      : tasks_(tasks), operands_(operands), sums_(sums) {}

  // Tasks first ... last - 1.
  void run(int64_t first, int64_t last) const {
    for (int64_t task = first; task < last; ++task) {
      run(tasks_[task]);
    }
  }

 private:
  void run(const Task& task) const {
    const ChannelView& view = tasks_.view();
    Scratch<WideLanes<acc_t>, tuning::kMaxPlaneChannels> sums;
    const int64_t channels = task.channels.size();
    const int64_t inner = view.inner;
    sums.reset(Op::kSums ? channels : 1);
    // (In locals, for a SIMD store may alias what lives in memory.)
    const int64_t count = task.inner.size();
    const bool bypass_caches = operands_.bypass_caches;
    for (int64_t row = task.rows.first; row < task.rows.last; ++row) {
      const int64_t run = row * view.channels + task.channels.first;
      Place at = Steps::advanced(operands_.begin, run * view.inner + task.inner.first);
      const weight_t* weight = operands_.weight + task.channels.first;
      for (int64_t c = 0; c < channels; ++c) {
        const WideStep slope(Steps::slope(*weight++));
        run_of(at, count, slope, bypass_caches, sums[Op::kSums ? c : 0]);
        at = Steps::advanced(at, inner);
      }
    }
    if constexpr (Op::kSums) {
      for (int64_t c = 0; c < channels; ++c) {
        sums_.put(task.split, task.channels.first + c, total(sums[c]));
      }
    }
  }

  // Neighbours that share a slope.
  static void run_of(
      const Place& start,
      int64_t count,
      const WideStep& slope,
      bool bypass_caches,
      WideLanes<acc_t>& sum) {
    Place at = start;
    int64_t left = count;
    const SharedSlope slopes{slope};
    while (left >= kGroup * Step::kSize) {
      auto chains = Steps::template zeros<kGroup>();
      const int64_t rounds = std::min<int64_t>(Steps::kRounds, left / (kGroup * Step::kSize));
      for (int64_t round = 0; round < rounds; ++round) {
        Steps::template steps<kGroup>(
            Steps::template neighbours<kGroup>(at), slopes, chains, bypass_caches);
        at = Steps::advanced(at, kGroup * Step::kSize);
      }
      left -= rounds * kGroup * Step::kSize;
      add(Steps::tree(chains), sum);
    }
    if (count < Step::kSize) {
      WideStep chain(acc_t(0));
      Steps::short_step(at, left, slope, chain);
      add(chain, sum);
      return;
    }
    // What is left is less than a group: some whole steps, and one that reaches back.
    switch (left / Step::kSize) {
      case 0:
        return rest<0>(at, left, slope, sum);
      case 1:
        return rest<1>(at, left, slope, sum);
      case 2:
        return rest<2>(at, left, slope, sum);
      default:
        return rest<3>(at, left, slope, sum);
    }
  }

  template <int kWhole>
  C10_ALWAYS_INLINE static void rest(
      const Place& at, int64_t left, const WideStep& slope, WideLanes<acc_t>& sum) {
    const int64_t tail = left - kWhole * Step::kSize;
    if (tail == 0) {
      if constexpr (kWhole > 0) {
        group<kWhole>(Steps::template neighbours<kWhole>(at), 0, slope, sum);
      }
      return;
    }
    std::array<Place, kWhole + 1> places;
#pragma GCC unroll 4
    for (int s = 0; s < kWhole; ++s) {
      places[s] = Steps::advanced(at, s * Step::kSize);
    }
    places[kWhole] = Steps::advanced(at, left - Step::kSize);
    group<kWhole + 1>(places, tail, slope, sum);
  }

  // Steps of which the last has only `tail` new elements, unless that is 0.
  template <size_t kSteps>
  C10_ALWAYS_INLINE static void group(
      const std::array<Place, kSteps>& places,
      int64_t tail,
      const WideStep& slope,
      WideLanes<acc_t>& sum) {
    auto chains = Steps::template zeros<kSteps>();
    Steps::template steps<kSteps>(places, SharedSlope{slope}, chains);
    if constexpr (Op::kSums) {
      WideStep chain = tail > 0 ? chains[kSteps - 1].last(tail) : chains[kSteps - 1];
#pragma GCC unroll 4
      for (size_t s = 0; s + 1 < kSteps; ++s) {
        chain = chain + chains[s];
      }
      add(chain, sum);
    }
  }

  C10_ALWAYS_INLINE static void add(const WideStep& chain, WideLanes<acc_t>& sum) {
    if constexpr (Op::kSums) {
      sum.add(chain.folded());
    }
  }

  const ChannelTasks& tasks_;
  const Operands& operands_;
  const Sums& sums_;
};

}  // namespace torch_ext::cpu::CPU_CAPABILITY
