// The operators on CUDA tensors.
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <utility>

#include "kernels/cuda/launch.h"
#include "ops/operators.h"

namespace torch_ext {
namespace {

// See operators.h. Everything is queued on the current stream; nothing waits.
struct CudaEngine {
  static constexpr auto kSuffix = "_cuda";
  static constexpr bool kMayLookTwice = false;

  template <typename Op, typename scalar_t, typename Step>
  struct Sweep {
    cuda::Operands<Op, scalar_t> operands;
    Step step;
  };

  static at::Tensor new_output(const at::Tensor& dense) { return empty_output(dense); }

  template <typename Function>
  static void for_each(int64_t count, const Function& function) {
    cuda::for_each_channel(count, function);
  }

  template <typename Op, typename scalar_t, typename Step>
  static auto sweep(
      const std::array<const scalar_t*, Op::kInputs>& inputs,
      const std::array<scalar_t*, Op::kOutputs>& outputs,
      const std::array<ChannelInput<scalar_t>, Op::kParams>& params,
      const Step& step) {
    cuda::Operands<Op, scalar_t> operands{};
    operands.inputs = inputs;
    operands.outputs = outputs;
    operands.params = params;
    return Sweep<Op, scalar_t, Step>{operands, step};
  }

  template <typename... Sweeps>
  static void run(const ChannelView& view, int /*tensors*/, const Sweeps&... sweeps) {
    (cuda::run(view, sweeps.operands, sweeps.step), ...);
  }

  static void add_shares(const double* shares, int64_t count, const at::Tensor& gradient) {
    AT_DISPATCH_FLOATING_TYPES_AND2(
        at::kHalf, at::kBFloat16, gradient.scalar_type(), "batch_norm", [&] {
          const StoreSums<scalar_t, 1> step{{channel_output<scalar_t>(gradient)}};
          cuda::add_rows(shares, gradient.numel(), count / gradient.numel(), step);
        });
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(torch_ext, CUDA, m) {
  register_operators<CudaEngine>(m);
}

}  // namespace torch_ext
