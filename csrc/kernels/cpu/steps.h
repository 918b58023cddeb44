// One step of elements, and groups of steps: load, run the operation, store, add terms. The
// operation is an argument; an Op has
//   kInputs        how many tensors of the task's layout it reads
//   kMaps, kSums   what it produces
//   map(in, w)     the output of a step of elements, from in[kInputs] and their slopes
//   term(in)       what each element adds to its channel's sum
// Knows no layout.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/prelu.h"

namespace torch_ext::cpu::CPU_CAPABILITY {

// Everything is inlined into the walkers' loops, which so keep their pointers in registers: a SIMD
// store may alias anything that lives in memory.
template <typename Op, typename scalar_t, typename weight_t>
struct StepsOf {
  using Step = Lanes<scalar_t>;
  using WideStep = Wide<scalar_t>;  // of slopes, and of the sums of short chains
  using acc_t = typename Step::acc_t;
  using Operands = ChannelwiseOperands<scalar_t, weight_t, Op::kInputs>;
  using Place = typename Operands::Place;
  using Inputs = std::array<Step, Op::kInputs>;

  // A sum's chain is as long as accuracy allows; without sums it only bounds the loop.
  static constexpr int64_t kRounds = Op::kSums ? kChain<acc_t> : INT64_MAX;
  // Steps taken together: as many as registers hold.
  static constexpr int kGroup = WideStep::kVectors == 1           ? 4
                                : WideStep::kEvenOdd && Op::kSums ? 1
                                                                  : 2;

  C10_ALWAYS_INLINE static Place advanced(Place from, int64_t elements) {
    for (const scalar_t*& input : from.inputs) {
      input += elements;
    }
    if constexpr (Op::kMaps) {
      from.output += elements;
    }
    return from;
  }

  static acc_t slope(weight_t weight) { return Step::slope(static_cast<acc_t>(weight)); }

  // The slopes of steps that share one.
  struct SharedSlope {
    WideStep slope;

    C10_ALWAYS_INLINE const WideStep& operator[](size_t) const { return slope; }
  };

  // Steps at several places, with the slopes and chains of each. All loads come before the first
  // store: a load that follows a store with the same last 12 address bits would have to wait for
  // it.
  template <size_t kSteps, typename Slopes>
  C10_ALWAYS_INLINE static void steps(
      const std::array<Place, kSteps>& at,
      const Slopes& slopes,
      std::array<WideStep, kSteps>& chains,
      bool bypass_caches = false) {
    // (Unrolled: else GCC keeps these arrays in memory.)
    std::array<Inputs, kSteps> in;
#pragma GCC unroll 8
    for (size_t s = 0; s < kSteps; ++s) {
#pragma GCC unroll 2
      for (int i = 0; i < Op::kInputs; ++i) {
        in[s][i] = Step::load(at[s].inputs[i]);
      }
    }
    std::array<Step, kSteps> out;
#pragma GCC unroll 8
    for (size_t s = 0; s < kSteps; ++s) {
      combine(in[s], slopes[s], out[s], chains[s]);
    }
    if constexpr (Op::kMaps) {
#pragma GCC unroll 8
      for (size_t s = 0; s < kSteps; ++s) {
        bypass_caches ? out[s].stream(at[s].output) : out[s].store(at[s].output);
      }
    }
  }

  template <size_t kSteps>
  C10_ALWAYS_INLINE static std::array<Place, kSteps> neighbours(const Place& first) {
    std::array<Place, kSteps> at;
    for (size_t s = 0; s < kSteps; ++s) {
      at[s] = advanced(first, s * Step::kSize);
    }
    return at;
  }

  // Fewer elements than a step has. Absent ones read as 0, whose term is 0.
  static void short_step(
      const Place& from, int64_t count, const WideStep& slopes, WideStep& chain) {
    Inputs in;
    for (int i = 0; i < Op::kInputs; ++i) {
      in[i] = Step::load(from.inputs[i], count);
    }
    Step out;
    combine(in, slopes, out, chain);
    if constexpr (Op::kMaps) {
      out.store(from.output, count);
    }
  }

  C10_ALWAYS_INLINE static void combine(
      const Inputs& in, const WideStep& slopes, Step& out, WideStep& chain) {
    if constexpr (Op::kMaps) {
      out = Op::map(in, slopes);
    }
    if constexpr (Op::kSums) {
      chain = chain + Op::term(in);
    }
  }

  template <size_t kChains>
  C10_ALWAYS_INLINE static std::array<WideStep, kChains> zeros() {
    std::array<WideStep, kChains> chains;
    chains.fill(WideStep(acc_t(0)));
    return chains;
  }

  // The sum of 1, 2 or 4 chains.
  template <size_t kChains>
  C10_ALWAYS_INLINE static WideStep tree(std::array<WideStep, kChains> chains) {
    for (size_t half = kChains / 2; half > 0; half /= 2) {
      for (size_t i = 0; i < half; ++i) {
        chains[i] = chains[i] + chains[i + half];
      }
    }
    return chains[0];
  }
};

}  // namespace torch_ext::cpu::CPU_CAPABILITY
