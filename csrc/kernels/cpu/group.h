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
  C10_ALWAYS_INLINE Accumulator<float> total() const {
    const Vector<double> both = values[0] + values[1];
    double sum = 0;
    for (int i = 0; i < Vector<double>::kSize; ++i) {
      sum += both.native[i];
    }
    return {sum};
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
  C10_ALWAYS_INLINE Accumulator<double> total() const {
    Accumulator<double> sum{};
    for (int i = 0; i < Vector<double>::kSize; ++i) {
      sum.add(Accumulator<double>{value.native[i], correction.native[i]});
    }
    return sum;
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

// A vector's sums where two neighbouring channels share its lanes: the terms of `lanes` are added
// to the first chains, those of `rest` to the others.
template <typename V, size_t kSums, typename Lanes>
class SplitSums {
 public:
  C10_ALWAYS_INLINE SplitSums(
      std::array<V, kSums>& chains,
      const Lanes& lanes,
      std::array<V, kSums>& chains_of_rest,
      const Lanes& rest)
      : first_(chains, lanes), second_(chains_of_rest, rest) {}

  class Sum {
   public:
    using Part = typename Sums<V, kSums, Lanes>::Sum;
    C10_ALWAYS_INLINE Sum(const Part& first, const Part& second) : first_(first), second_(second) {}

    template <typename... Arguments>
    C10_ALWAYS_INLINE void add(const Arguments&... arguments) const {
      first_.add(arguments...);
      second_.add(arguments...);
    }
    template <typename... Arguments>
    C10_ALWAYS_INLINE void add_product(const Arguments&... arguments) const {
      first_.add_product(arguments...);
      second_.add_product(arguments...);
    }

   private:
    const Part first_;
    const Part second_;
  };

  C10_ALWAYS_INLINE Sum operator[](int i) const { return {first_[i], second_[i]}; }

 private:
  const Sums<V, kSums, Lanes> first_;
  const Sums<V, kSums, Lanes> second_;
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
    int64_t prefetch_bytes;  // how far ahead inputs are asked for; 0: they are not
  };

  // (Without sums there is too little to do for each line.)
  static constexpr bool kPrefetches = Op::kSums > 0;

  static Tensors tensors_of(const Plan& plan, const Operands<Op, scalar_t>& operands) {
    return {
        operands.inputs, operands.outputs, operands.bypass_caches,
        kPrefetches && operands.bypass_caches ? plan.prefetch_bytes() : 0};
  }

  // Asks for what the traversal will read some distance after these elements, if it is to.
  C10_ALWAYS_INLINE static void prefetch(const Tensors& tensors, int64_t first, int64_t last) {
    constexpr int64_t kLine = 64 / sizeof(scalar_t);
    if (!kPrefetches || tensors.prefetch_bytes == 0) {
      return;
    }
    for (int64_t at = first; at < last; at += kLine) {
      unrolled<Op::kInputs>(TORCH_EXT_UNROLLED(i) {
        // (It may lie after the tensor. Nothing is read from it.)
        const auto* const bytes = reinterpret_cast<const char*>(tensors.inputs[i] + at);
        __builtin_prefetch(bytes + tensors.prefetch_bytes);
      });
    }
  }

  // Packs at several offsets: pack p with params_of(p, v) and sums_of(p, v) for each of its
  // vectors. All loads come before the first store: a load that follows a store with the same last
  // 12 address bits would have to wait for it.
  template <size_t kPacks, typename ParamsOf, typename SumsOf>
  C10_ALWAYS_INLINE static void run(
      const Tensors& tensors,
      const std::array<int64_t, kPacks>& offsets,
      const ParamsOf& params_of,
      const SumsOf& sums_of) {
    std::array<std::array<P, Op::kInputs>, kPacks> in;
    unrolled<kPacks>(TORCH_EXT_UNROLLED(p) {
      unrolled<Op::kInputs>(
          TORCH_EXT_UNROLLED(i) { in[p][i] = P::load(tensors.inputs[i] + offsets[p]); });
    });
    std::array<std::array<P, Op::kOutputs>, kPacks> out;
    unrolled<kPacks>(TORCH_EXT_UNROLLED(p) {
      const auto params = [&](auto v) __attribute__((always_inline)) -> const Params& {
        return params_of(p, v);
      };
      apply(
          in[p], params, [&](auto v) __attribute__((always_inline)) { return sums_of(p, v); },
          out[p]);
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
    const auto lanes = P::first_lanes(count);
    apply(
        in, params_of,
        [&](auto v) __attribute__((always_inline)) { return Sums(chains[v], lanes[v]); }, out);
    for (int o = 0; o < Op::kOutputs; ++o) {
      out[o].store(tensors.outputs[o] + offset, count);
    }
  }

 private:
  template <typename ParamsOf, typename SumsOf>
  C10_ALWAYS_INLINE static void apply(
      const std::array<P, Op::kInputs>& in,
      const ParamsOf& params_of,
      const SumsOf& sums_of,
      std::array<P, Op::kOutputs>& out) {
    std::array<typename P::Widened, Op::kInputs> wide;
    unrolled<Op::kInputs>(TORCH_EXT_UNROLLED(i) { wide[i] = in[i].widened(); });
    std::array<typename P::Widened, Op::kOutputs> results;
    unrolled<kVectors>(TORCH_EXT_UNROLLED(v) {
      std::array<V, Op::kInputs> inputs;
      unrolled<Op::kInputs>(TORCH_EXT_UNROLLED(i) { inputs[i] = wide[i][v]; });
      auto sums = sums_of(v);
      const std::array<V, Op::kOutputs> outputs = Op::apply(inputs, params_of(v), sums);
      unrolled<Op::kOutputs>(TORCH_EXT_UNROLLED(o) { results[o][v] = outputs[o]; });
    });
    unrolled<Op::kOutputs>(TORCH_EXT_UNROLLED(o) { out[o] = P::rounded(results[o]); });
  }
};

}  // namespace torch_ext::cpu::CPU_CAPABILITY
