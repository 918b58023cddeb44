// The operators on CPU tensors.
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <utility>

#include "kernels/accumulator.h"
#include "kernels/cpu/launch.h"
#include "ops/huge_pages.h"
#include "ops/knobs.h"
#include "ops/operators.h"

namespace torch_ext {
namespace {

// See operators.h.
struct CpuEngine {
  static constexpr auto kSuffix = "_cpu";
  static constexpr bool kMayLookTwice = true;

  static at::Tensor new_output(const at::Tensor& dense) {
    at::Tensor output = empty_output(dense);
    advise_huge_pages(output);
    return output;
  }

  template <typename Function>
  static void for_each(int64_t count, const Function& function) {
    constexpr int64_t kGrain = 128;  // one costs about as much as some hundred elements
    cpu::PyTorch().parallel_for(count, kGrain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        function(i);
      }
    });
  }

  template <typename Op, typename scalar_t, typename Step>
  static auto sweep(
      const std::array<const scalar_t*, Op::kInputs>& inputs,
      const std::array<scalar_t*, Op::kOutputs>& outputs,
      const std::array<ChannelInput<scalar_t>, Op::kParams>& params,
      const Step& step) {
    return cpu::Sweep(cpu::Operands<Op, scalar_t>{inputs, outputs, params}, step);
  }

  template <typename... Sweeps>
  static void run(const ChannelView& view, int tensors, Sweeps... sweeps) {
    cpu::run(view, knobs().nt_stores, tensors, std::move(sweeps)...);
  }

  // In the order of their indices.
  static void add_shares(const double* shares, int64_t count, const at::Tensor& gradient) {
    const int64_t values = gradient.numel();
    AT_DISPATCH_FLOATING_TYPES_AND2(
        at::kHalf, at::kBFloat16, gradient.scalar_type(), "batch_norm", [&] {
          const auto output = channel_output<scalar_t>(gradient);
          for (int64_t value = 0; value < values; ++value) {
            Accumulator<double> sum{};
            for (int64_t i = value; i < count; i += values) {
              sum.add(shares[i]);
            }
            output.write(value, sum.total());
          }
        });
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(torch_ext, CPU, m) {
  register_operators<CpuEngine>(m);
}

}  // namespace torch_ext
