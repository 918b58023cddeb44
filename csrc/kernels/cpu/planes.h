// Walks long runs of one slope: the slope stays in a register, sums of a run in a few more. Owns
// loads, tails and the order of sums; knows neither the operation nor threads.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "kernels/cpu/channel_tasks.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/steps.h"

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
    sums.reset(Op::kSums ? task.channels.size() : 1);
    for (int64_t row = task.rows.first; row < task.rows.last; ++row) {
      for (int64_t c = task.channels.first; c < task.channels.last; ++c) {
        const int64_t at = (row * view.channels + c) * view.inner + task.inner.first;
        const WideStep slope(Steps::slope(operands_.weight[c]));
        run_of(
            Steps::advanced(operands_.begin, at), task.inner.size(), slope, operands_.bypass_caches,
            sums[Op::kSums ? c - task.channels.first : 0]);
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
      const Place& start,
      int64_t count,
      const WideStep& slope,
      bool bypass_caches,
      WideLanes<acc_t>& sum) {
    Place at = start;
    int64_t left = count;
    std::array<WideStep, kGroup> slopes;
    slopes.fill(slope);
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
    WideStep chain(acc_t(0));
    for (; left >= Step::kSize; left -= Step::kSize) {
      Steps::step(at, slope, chain);
      at = Steps::advanced(at, Step::kSize);
    }
    if (left > 0) {
      count >= Step::kSize
          ? Steps::overlapping_step(Steps::advanced(at, left - Step::kSize), left, slope, chain)
          : Steps::short_step(at, left, slope, chain);
    }
    add(chain, sum);
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
