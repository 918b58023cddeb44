// All operators on a device's engine. An Engine, which operators_cpu.cpp and operators_cuda.cpp
// define, has:
//
//   kSuffix                                  of names in dtype errors: "prelu_cpu", as in PyTorch's
//   kMayLookTwice                            whether the host may read what sweeps have found
//   new_output(dense)                        uninitialised, in the layout of `dense`
//   for_each(count, function)                function(0) ... function(count - 1), in any order
//   sweep<Op, scalar_t>(inputs, outputs, params, step)
//   run(view, tensors, sweeps...)            in this order, over `tensors` tensors
//   add_shares(shares, count, gradient)      share i belongs to value i % gradient.numel()
#pragma once

#include <torch/library.h>

#include "ops/norm_prelu_run.h"
#include "ops/prelu_run.h"

namespace torch_ext {

template <typename Engine>
void register_operators(torch::Library& m) {
  m.impl("prelu", prelu_on<Engine>);
  m.impl("prelu_backward", prelu_backward_on<Engine>);
  m.impl("_norm_prelu", norm_prelu_on<Engine>);
  m.impl("_norm_prelu_eval", norm_prelu_eval_on<Engine>);
  m.impl("_norm_prelu_backward", norm_prelu_backward_on<Engine>);
}

}  // namespace torch_ext
