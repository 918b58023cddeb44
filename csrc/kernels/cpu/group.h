// A group of packs: load, apply the operation, add to the chains of the sums, store. Also the
// second level of the sums, lane by lane. Takes the operation as an argument and knows no layout.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/accumulator.h"
#include "kernels/cpu/pack.h"
#include "kernels/cpu/run_tasks.h"

namespace torch_ext::cpu::CPU_CAPABILITY {

// An Accumulator in each lane of a vector.
template <typename compute_t>
struct VectorAccumulator;

template <>
struct VectorAccumulator<float> {
  std::array<Vector<double>, 2> values;

  C10_ALWAYS_INLINE void add(const Vector<float>& chain) {
    const auto [low, high] = widened(chain);
    values[0] = values[0] + low;
    values[1] = values[1] + high;
  }
  // Lane by lane, to Vector<float>::kSize sums.
  C10_ALWAYS_INLINE void store(Accumulator<float>* to) const {
    std::memcpy(to, &values, sizeof(values));
  }
};

template <>
struct VectorAccumulator<double> {
  Vector<double> value;
  Vector<double> correction;

  C10_ALWAYS_INLINE void add(const Vector<double>& chain) {
    const TwoSum<Vector<double>> next(value, chain);
    value = next.sum;
    correction = correction + next.error;
  }
  C10_ALWAYS_INLINE void store(Accumulator<double>* to) const {
    for (int i = 0; i < Vector<double>::kSize; ++i) {
      to[i] = {value.native[i], correction.native[i]};
    }
  }
};

// Which lanes' terms are added: all, or those of a mask.
struct AllLanes {
  const AllLanes& operator[](int) const { return *this; }
};
inline constexpr AllLanes kAllLanes;

// A vector's sums, as operations add to them.
template <typename V, size_t kSums, typename Lanes>
class Sums {
 public:
  C10_ALWAYS_INLINE Sums(std::array<V, kSums>& chains, const Lanes& lanes)
      : chains_(chains), lanes_(lanes) {}

  class Sum {
   public:
    C10_ALWAYS_INLINE Sum(V& chain, const Lanes& lanes) : chain_(chain), lanes_(lanes) {}

    C10_ALWAYS_INLINE void add(const V& term) const {
      if constexpr (kAll) {
        chain_ = chain_ + term;
      } else {
        chain_ = add_where(lanes_, chain_, term);
      }
    }
    C10_ALWAYS_INLINE void add_product(const V& a, const V& b) const {
      if constexpr (kAll) {
        chain_ = multiply_add(a, b, chain_);
      } else {
        chain_ = multiply_add_where(lanes_, a, b, chain_);
      }
    }
    template <typename Where>
    C10_ALWAYS_INLINE void add(const V& term, const Where& where) const {
      chain_ = add_where(among_lanes(where), chain_, term);
    }
    template <typename Where>
    C10_ALWAYS_INLINE void add_product(const V& a, const V& b, const Where& where) const {
      chain_ = multiply_add_where(among_lanes(where), a, b, chain_);
    }

   private:
    static constexpr bool kAll = std::is_same_v<Lanes, AllLanes>;

    C10_ALWAYS_INLINE auto among_lanes(const auto& where) const {
      if constexpr (kAll) {
        return where;
      } else {
        return where & lanes_;
      }
    }

    V& chain_;
    const Lanes& lanes_;
  };

  C10_ALWAYS_INLINE Sum operator[](int i) const { return {chains_[i], lanes_}; }

 private:
  std::array<V, kSums>& chains_;
  const Lanes& lanes_;
};

// Everything is inlined into the loops of the traversals, so that pointers stay in registers: a
// SIMD store may alias anything that is in memory.
template <typename Op, typename scalar_t>
struct Group {
  using compute_t = compute_type<scalar_t>;
  using P = Pack<scalar_t>;
  using V = typename P::V;
  static constexpr int kVectors = P::kVectors;
  using Params = std::array<V, Op::kParams>;                      // of a vector's elements
  using Chains = std::array<std::array<V, Op::kSums>, kVectors>;  // of a pack's terms

  // The tensors of a task.
  struct Tensors {
    std::array<const scalar_t*, Op::kInputs> inputs;
    std::array<scalar_t*, Op::kOutputs> outputs;
    bool bypass_caches;
  };

  // Packs at several offsets: pack p with params_of(p, v) for each of its vectors, chains_of(p) and
  // lanes_of(p). All loads come before the first store: a load that follows a store with the same
  // last 12 address bits would have to wait for it.
  template <size_t kPacks, typename ParamsOf, typename ChainsOf, typename LanesOf>
  C10_ALWAYS_INLINE static void run(
      const Tensors& tensors,
      const std::array<int64_t, kPacks>& offsets,
      const ParamsOf& params_of,
      const ChainsOf& chains_of,
      const LanesOf& lanes_of) {
    std::array<std::array<P, Op::kInputs>, kPacks> in;
    unrolled<kPacks>(TORCH_EXT_UNROLLED(p) {
      unrolled<Op::kInputs>(
          TORCH_EXT_UNROLLED(i) { in[p][i] = P::load(tensors.inputs[i] + offsets[p]); });
    });
    std::array<std::array<P, Op::kOutputs>, kPacks> out;
    unrolled<kPacks>(TORCH_EXT_UNROLLED(p) {
      const auto params = [&](auto v) -> const Params& { return params_of(p, v); };
      apply(in[p], params, chains_of(p), lanes_of(p), out[p]);
    });
    unrolled<kPacks>(TORCH_EXT_UNROLLED(p) {
      unrolled<Op::kOutputs>(TORCH_EXT_UNROLLED(o) {
        scalar_t* const to = tensors.outputs[o] + offsets[p];
        if (tensors.bypass_caches) [[unlikely]] {
          out[p][o].stream(to);
        } else {
          out[p][o].store(to);
        }
      });
    });
  }

  // Only the first `count` elements of a pack, because the tensor ends there.
  template <typename ParamsOf>
  static void run_part(
      const Tensors& tensors,
      int64_t offset,
      int64_t count,
      const ParamsOf& params_of,
      Chains& chains) {
    std::array<P, Op::kInputs> in;
    for (int i = 0; i < Op::kInputs; ++i) {
      in[i] = P::load(tensors.inputs[i] + offset, count);
    }
    std::array<P, Op::kOutputs> out;
    apply(in, params_of, chains, P::lanes(0, count), out);
    for (int o = 0; o < Op::kOutputs; ++o) {
      out[o].store(tensors.outputs[o] + offset, count);
    }
  }

 private:
  template <typename ParamsOf, typename Lanes>
  C10_ALWAYS_INLINE static void apply(
      const std::array<P, Op::kInputs>& in,
      const ParamsOf& params_of,
      Chains& chains,
      const Lanes& lanes,
      std::array<P, Op::kOutputs>& out) {
    std::array<typename P::Widened, Op::kInputs> wide;
    unrolled<Op::kInputs>(TORCH_EXT_UNROLLED(i) { wide[i] = in[i].widened(); });
    std::array<typename P::Widened, Op::kOutputs> results;
    unrolled<kVectors>(TORCH_EXT_UNROLLED(v) {
      std::array<V, Op::kInputs> inputs;
      unrolled<Op::kInputs>(TORCH_EXT_UNROLLED(i) { inputs[i] = wide[i][v]; });
      const auto& lanes_here = lanes[v];
      Sums sums(chains[v], lanes_here);
      const std::array<V, Op::kOutputs> outputs = Op::apply(inputs, params_of(v), sums);
      unrolled<Op::kOutputs>(TORCH_EXT_UNROLLED(o) { results[o][v] = outputs[o]; });
    });
    unrolled<Op::kOutputs>(TORCH_EXT_UNROLLED(o) { out[o] = P::rounded(results[o]); });
  }
};

}  // namespace torch_ext::cpu::CPU_CAPABILITY
