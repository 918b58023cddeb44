// The dtype switch of both devices: from two ScalarTypes to two C++ types.
#pragma once

#include <ATen/Dispatch.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <type_traits>

namespace torch_ext {

template <typename scalar_t>
inline constexpr bool is_16_bit =
    std::is_same_v<scalar_t, c10::Half> || std::is_same_v<scalar_t, c10::BFloat16>;

template <typename T>
struct TypeTag {
  using type = T;
};

// Calls function(TypeTag<scalar_t>, TypeTag<weight_t>) for the pair of dtypes that check_prelu_args
// let through: equal ones, or 16-bit data with a float32 weight.
template <typename Function>
void dispatch_prelu_types(at::ScalarType input, at::ScalarType weight, const Function& function) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input, "prelu", [&] {
    if constexpr (is_16_bit<scalar_t>) {
      if (weight == at::kFloat) {
        return function(TypeTag<scalar_t>{}, TypeTag<float>{});
      }
    }
    function(TypeTag<scalar_t>{}, TypeTag<scalar_t>{});
  });
}

}  // namespace torch_ext
