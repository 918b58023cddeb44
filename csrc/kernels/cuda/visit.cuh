// A thread's visit to a few packs: loads, the operation on every element, stores. The operation and
// the traversal are arguments; of sums it knows only that terms are added.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/cuda/memory.cuh"
#include "kernels/cuda/operands.h"
#include "kernels/cuda/sums.cuh"
#include "kernels/cuda/traversal.h"
#include "kernels/cuda/tuning.h"

namespace torch_ext::cuda {

template <typename Op, typename scalar_t>
using InputPacks = std::array<Pack<scalar_t>, Op::kInputs>;
template <typename Op, typename scalar_t>
using OutputPacks = std::array<Pack<scalar_t>, Op::kOutputs>;

// The params of each element of a thread's packs.
template <typename Op, typename scalar_t>
using PackParams =
    std::array<std::array<compute_type<scalar_t>, Op::kParams>, Pack<scalar_t>::kSize>;

template <typename Op, typename scalar_t>
using PackChains = Chains<compute_type<scalar_t>, Op::kSums, Pack<scalar_t>::kSize>;

// The arithmetic of one pack: elements are widened, the operation is applied to each, results are
// rounded. present(i): whether element i of the pack exists.
template <typename Op, typename scalar_t, typename Present>
__device__ __forceinline__ OutputPacks<Op, scalar_t> apply(
    const InputPacks<Op, scalar_t>& inputs,
    const PackParams<Op, scalar_t>& params,
    PackChains<Op, scalar_t>& chains,
    const Present& present) {
  using compute_t = compute_type<scalar_t>;
  OutputPacks<Op, scalar_t> outputs;
#pragma unroll
  for (int i = 0; i < Pack<scalar_t>::kSize; ++i) {
    std::array<compute_t, Op::kInputs> values;
#pragma unroll
    for (int input = 0; input < Op::kInputs; ++input) {
      values[input] = static_cast<compute_t>(inputs[input].value[i]);
    }
    ElementSums<compute_t, Op::kSums, Pack<scalar_t>::kSize> sums{chains, i, present(i)};
    const std::array<compute_t, Op::kOutputs> results = Op::apply(values, params[i], sums);
#pragma unroll
    for (int output = 0; output < Op::kOutputs; ++output) {
      outputs[output].value[i] = static_cast<scalar_t>(results[output]);
    }
  }
  return outputs;
}

// store(pointer, pack) for each output that is wanted.
template <typename Op, typename scalar_t, typename Store>
__device__ __forceinline__ void store_outputs(
    const Operands<Op, scalar_t>& data,
    const OutputPacks<Op, scalar_t>& outputs,
    const Store& store) {
#pragma unroll
  for (int output = 0; output < Op::kOutputs; ++output) {
    if (data.outputs[output] != nullptr) {
      store(data.outputs[output], outputs[output]);
    }
  }
}

// A pack that is visited only in part, element by element.
template <typename Op, typename scalar_t>
__device__ __forceinline__ void visit_part(
    const Operands<Op, scalar_t>& data,
    const PackPlace& place,
    const PackParams<Op, scalar_t>& params,
    PackChains<Op, scalar_t>& chains) {
  InputPacks<Op, scalar_t> inputs;
#pragma unroll
  for (int input = 0; input < Op::kInputs; ++input) {
    inputs[input] = load_part(data.inputs[input], place);
  }
  const auto outputs =
      apply<Op, scalar_t>(inputs, params, chains, [&](int i) { return place.has(i); });
  store_outputs(data, outputs, [&](scalar_t* output, const Pack<scalar_t>& pack) {
    store_part(output, place, pack);
  });
}

// A thread's next packs: all loads, then arithmetic and stores. Incomplete packs, which are rare,
// follow one by one.
template <typename Op, bool kShifted, typename Order, typename Cursor, typename scalar_t>
__device__ __forceinline__ void visit(
    const Order& traversal,
    Cursor& cursor,
    const Operands<Op, scalar_t>& data,
    const PackParams<Op, scalar_t>& params,
    PackChains<Op, scalar_t>& chains) {
  constexpr int kPack = Pack<scalar_t>::kSize;
  constexpr int kPacks = packs_per_visit(counts_of<Op>(), kShifted);
  const Cursor start = cursor;
  std::array<int64_t, kPacks> position;
  std::array<bool, kPacks> whole;
  int64_t safe = -1;
  bool has_parts = false;
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const PackPlace place = next_place<kPack>(traversal, cursor);
    position[i] = place.position;
    whole[i] = place.whole;
    safe = place.whole ? place.position : safe;
    has_parts = has_parts || (!place.whole && !place.empty());
  }
  if (safe >= 0) {
    // Every load is executed, some twice: a condition around them would prevent them from being in
    // flight together.
    std::array<InputPacks<Op, scalar_t>, kPacks> inputs;
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int64_t from = whole[i] ? position[i] : safe;
#pragma unroll
      for (int input = 0; input < Op::kInputs; ++input) {
        inputs[i][input] = load<kShifted>(data.inputs[input] + from, data.shifts[input]);
      }
    }
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      if (whole[i]) {
        const auto outputs =
            apply<Op, scalar_t>(inputs[i], params, chains, [](int) { return true; });
        store_outputs(data, outputs, [&](scalar_t* output, const Pack<scalar_t>& pack) {
          store(output + position[i], pack);
        });
      }
    }
  }
  if (has_parts) {
    Cursor again = start;
#pragma unroll 1
    for (int i = 0; i < kPacks; ++i) {
      const PackPlace place = next_place<kPack>(traversal, again);
      if (!place.whole && !place.empty()) {
        visit_part(data, place, params, chains);
      }
    }
  }
}

}  // namespace torch_ext::cuda
