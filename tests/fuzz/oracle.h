// The contract, element by element, in code of its own: which arguments are wrong, what each
// element is, and between which two numbers each sum has to lie.
#pragma once

#include <torch/types.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

namespace torch_ext::fuzz {

// ---- Arguments --------------------------------------------------------------------------------

// What the error's message has to contain; empty for arguments that are right.
inline std::string expected_error(const at::Tensor& input, const at::Tensor& weight) {
  const auto dtype = input.scalar_type();
  const bool mixed =
      (dtype == at::kHalf || dtype == at::kBFloat16) && weight.scalar_type() == at::kFloat;
  if (dtype != weight.scalar_type() && !mixed) {
    return "Type promoting not supported";
  }
  if (weight.numel() != 1) {
    if (input.dim() == 0) {
      return "Not allow zero-dim input tensor";
    }
    if (weight.numel() != (input.dim() > 1 ? input.size(1) : 1)) {
      return "Mismatch of parameter numbers and input channel size";
    }
  }
  if (weight.dim() > 1) {
    return "Expected `weight` to be a scalar or 1D tensor";
  }
  return dtype == at::kLong ? "not implemented for 'Long'" : "";
}

inline std::string expected_error(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight) {
  const std::string error = expected_error(input, weight);
  if (!error.empty()) {
    return error;
  }
  const bool wrong =
      grad_output.sizes() != input.sizes() || grad_output.scalar_type() != input.scalar_type();
  return wrong ? "Expected `grad_output` to have the" : "";
}

// ---- Elements ---------------------------------------------------------------------------------

// Calls visit(position, channel) for every element: its place in each tensor's memory, in elements.
template <size_t kTensors, typename Visit>
void for_each_element(const std::array<at::Tensor, kTensors>& tensors, const Visit& visit) {
  const auto sizes = tensors[0].sizes();
  std::vector<int64_t> index(sizes.size());
  std::array<int64_t, kTensors> position{};
  for (int64_t i = 0; i < tensors[0].numel(); ++i) {
    visit(position, index.size() > 1 ? index[1] : 0);
    for (size_t d = index.size(); d-- > 0;) {
      ++index[d];
      const bool wraps = index[d] == sizes[d];
      for (size_t t = 0; t < kTensors; ++t) {
        position[t] += tensors[t].stride(d) * (wraps ? 1 - sizes[d] : 1);
      }
      if (!wraps) {
        break;
      }
      index[d] = 0;
    }
  }
}

template <typename scalar_t>
using acc_of = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

// A planted fault: the other branch at zero.
struct Faults {
  bool zero_is_positive = false;
};

// One product, rounded to the accumulation type, then to storage. (A product of two floats is exact
// in double.)
template <typename scalar_t, typename weight_t>
scalar_t expected_element(scalar_t x, scalar_t value, weight_t weight, Faults faults) {
  const auto as_double = static_cast<double>(x);
  if (as_double > 0 || (faults.zero_is_positive && as_double == 0)) {
    return value;
  }
  const double product = static_cast<double>(weight) * static_cast<double>(value);
  return static_cast<scalar_t>(static_cast<acc_of<scalar_t>>(product));
}

// Bits, but every NaN is the same.
template <typename T>
bool same(T a, T b) {
  if (std::isnan(static_cast<double>(a)) || std::isnan(static_cast<double>(b))) {
    return std::isnan(static_cast<double>(a)) && std::isnan(static_cast<double>(b));
  }
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

// ---- Sums -------------------------------------------------------------------------------------

// One slope's terms, added up in 113 bits.
template <typename acc_t>
class ExpectedSum {
 public:
  void add(double x, double grad_output) {
    const double term = x * grad_output;
    if (x > 0) {
      return;
    }
    if (std::isfinite(x) && std::isfinite(grad_output)) {
      const __float128 exact = static_cast<__float128>(x) * grad_output;
      sum_ += exact;
      size_ += exact < 0 ? -exact : exact;
      ++count_;
    } else {
      non_finite_ += term;  // Inf, or NaN as soon as the signs differ or a term is NaN
    }
  }

  // 16 units (double: 8) of the sum of all magnitudes, and for each product what it may lose below
  // the smallest number; then the roundings to acc_t and storage, which keep the order of numbers.
  template <typename weight_t>
  bool allows(weight_t result) const {
    constexpr bool kDouble = std::is_same_v<acc_t, double>;
    const auto got = static_cast<double>(result);
    if (size_ > static_cast<__float128>(std::numeric_limits<acc_t>::max()) / 4) {
      return true;  // may overflow on the way, depending on the order
    }
    if (non_finite_ != 0) {
      return same(got, non_finite_);
    }
    const __float128 summation = kDouble ? 8 * 0x1p-53 : 16 * 0x1p-24;
    const __float128 smallest = std::numeric_limits<acc_t>::denorm_min();
    const __float128 bound = summation * size_ + count_ * smallest / 2;
    const auto rounded = [](__float128 value) {
      return static_cast<double>(static_cast<weight_t>(static_cast<acc_t>(value)));
    };
    return rounded(sum_ - bound) <= got && got <= rounded(sum_ + bound);
  }

  double value() const { return static_cast<double>(sum_) + non_finite_; }

 private:
  __float128 sum_ = 0;
  __float128 size_ = 0;
  int64_t count_ = 0;
  double non_finite_ = 0;
};

}  // namespace torch_ext::fuzz
