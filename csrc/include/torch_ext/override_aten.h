// Runs aten::prelu on our kernels for as long as a guard lives, for programs whose models call
// torch::prelu, torch::nn::PReLU or come as ScriptModules and should stay as they are.
//
//   #include <torch_ext/override_aten.h>
//   {
//     const torch_ext::OverrideAten guard;
//     output = script_module.forward({input});   // aten::prelu is torch_ext::prelu in here
//   }
//
// Scope    the whole process, every thread, while at least one guard lives. Guards may nest and
//          overlap, and be made and destroyed in any thread at any time, but for the first one.
// First    The first guard of a process changes PyTorch's dispatch table, for good, which PyTorch
//          does not protect from readers: make it while no other thread calls aten::prelu.
// Covers   CPU and (if built for it) CUDA tensors, with derivatives. All else, errors included, is
//          stock's: other layouts and devices, vmap, graphs that torch.compile and export record.
// Dtypes   stock's rule, so one for both arguments; torch_ext::prelu itself still takes mixed ones.
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
