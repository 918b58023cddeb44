// Runs aten::prelu on the kernels of torch_ext while a guard exists, for programs whose models call
// torch::prelu, contain torch::nn::PReLU or are ScriptModules, and should not be changed.
//
//   #include <torch_ext/override_aten.h>
//   {
//     const torch_ext::OverrideAten guard;
//     output = script_module.forward({input});   // aten::prelu is torch_ext::prelu in here
//   }
//
// Scope    the whole process, every thread, while at least one guard exists. Guards may nest and
//          overlap, and may be created and destroyed in any thread at any time, except the first.
// First    The first guard of a process changes PyTorch's dispatch table for good. PyTorch does not
//          protect readers of the table: create it while no other thread calls aten::prelu.
// Covers   CPU and (if built for it) CUDA tensors, with derivatives. Everything else is left to
//          PyTorch's operator: errors, other layouts and devices, vmap, and graphs that
//          torch.compile and torch.export record.
// Dtypes   the same for both arguments, as PyTorch requires; torch_ext::prelu itself accepts a
//          16-bit input with a float32 weight.
// Errors   c10::Error from the constructor if another library has replaced aten::prelu, before the
//          first guard or since.
#pragma once

#include <torch_ext/export.h>

namespace torch_ext {

class TORCH_EXT_API OverrideAten {
 public:
  [[nodiscard]] OverrideAten();
  ~OverrideAten();
  OverrideAten(const OverrideAten&) = delete;
  OverrideAten& operator=(const OverrideAten&) = delete;
};

}  // namespace torch_ext
