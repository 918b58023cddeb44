// A thread's visit to a few slots: loads, the operation on every element, stores. Knows the
// operation and the walk as arguments only, and no reduction beyond its own terms.
#pragma once

#include <cstdint>

#include "kernels/cuda/operands.cuh"
#include "kernels/cuda/vector_access.cuh"
#include "kernels/cuda/walk.h"

namespace torch_ext::cuda {

// Slots of one visit: four, or what eight 128-bit loads in flight allow.
template <typename Op, bool kShifted>
constexpr int unroll() {
  constexpr int loads = (Op::kReadsGradOutput ? 2 : 1) * (kShifted ? 2 : 1);
  return loads <= 2 ? 4 : 8 / loads;
}

// Arithmetic of one slot: the result of every element, and their terms added to sums.
template <typename Op, typename scalar_t, typename acc_t, int kVector>
__device__ __forceinline__ Pack<scalar_t> apply(
    const Pack<scalar_t>& input,
    const Pack<scalar_t>& grad_output,
    const acc_t (&weight)[kVector],
    acc_t (&sums)[kVector]) {
  Pack<scalar_t> result;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const acc_t x = static_cast<acc_t>(input.value[i]);
    acc_t g = acc_t(0);
    if constexpr (Op::kReadsGradOutput) {
      g = static_cast<acc_t>(grad_output.value[i]);
    }
    result.value[i] = static_cast<scalar_t>(Op::output(x, g, weight[i]));
    if constexpr (Op::kReduces) {
      sums[i] += Op::term(x, g);
    }
  }
  return result;
}

// A slot that is only in part the caller's, element by element.
template <typename Op, typename scalar_t, typename acc_t, int kVector>
__device__ __forceinline__ void visit_part(
    const Operands<scalar_t, acc_t>& data,
    const Slot& slot,
    const acc_t (&weight)[kVector],
    acc_t (&sums)[kVector]) {
  const Pack<scalar_t> input = load_part(data.input, slot);
  Pack<scalar_t> grad_output;
  if constexpr (Op::kReadsGradOutput) {
    grad_output = load_part(data.grad_output, slot);
  }
  const Pack<scalar_t> result = apply<Op>(input, grad_output, weight, sums);
  if (data.output != nullptr) {
    store_part(data.output, slot, result);
  }
}

// A thread's next slots: all loads, then arithmetic and stores; parts of slots, which are rare,
// one by one behind them. The terms of the slots' elements i are added to sums[i].
template <
    typename Op,
    bool kShifted,
    typename Walk,
    typename Cursor,
    typename Data,
    typename acc_t,
    int kVector>
__device__ __forceinline__ void visit(
    const Walk& walk,
    Cursor& cursor,
    const Data& data,
    const acc_t (&weight)[kVector],
    acc_t (&sums)[kVector]) {
  using scalar_t = typename Data::scalar_type;
  constexpr int kUnroll = unroll<Op, kShifted>();
  const Cursor start = cursor;
  int64_t position[kUnroll];
  bool whole[kUnroll];
  int64_t safe = -1;
  bool has_parts = false;
#pragma unroll
  for (int i = 0; i < kUnroll; ++i) {
    const Slot slot = next_slot<kVector>(walk, cursor);
    position[i] = slot.position;
    whole[i] = slot.whole;
    safe = slot.whole ? slot.position : safe;
    has_parts = has_parts || (!slot.whole && !slot.empty());
  }
  if (safe >= 0) {
    // Every load is made, some twice: a condition around them would keep them from being in flight
    // together.
    Pack<scalar_t> input[kUnroll];
    Pack<scalar_t> grad_output[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int64_t from = whole[i] ? position[i] : safe;
      input[i] = load<kShifted>(data.input + from, data.input_shift);
      if constexpr (Op::kReadsGradOutput) {
        grad_output[i] = load<kShifted>(data.grad_output + from, data.grad_output_shift);
      }
    }
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      if (whole[i]) {
        const Pack<scalar_t> result = apply<Op>(input[i], grad_output[i], weight, sums);
        if (data.output != nullptr) {
          store(data.output + position[i], result);
        }
      }
    }
  }
  if (has_parts) {
    Cursor again = start;
#pragma unroll 1
    for (int i = 0; i < kUnroll; ++i) {
      const Slot slot = next_slot<kVector>(walk, again);
      if (!slot.whole && !slot.empty()) {
        visit_part<Op>(data, slot, weight, sums);
      }
    }
  }
}

}  // namespace torch_ext::cuda
