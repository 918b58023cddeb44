// The operators on CPU tensors: from tensors to pointers, tasks onto threads.
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <string>

#include "kernels/cpu/prelu.h"
#include "kernels/prelu_math.h"
#include "ops/huge_pages.h"
#include "ops/knobs.h"
#include "ops/prelu_args.h"
#include "ops/prelu_types.h"

namespace torch_ext {
namespace {

#if defined(__x86_64__)
constexpr bool kHasAvx = true;
#else
constexpr bool kHasAvx = false;
#endif

// The kernels for the instruction set that PyTorch itself runs on (ATEN_CPU_CAPABILITY included).
template <typename scalar_t, typename weight_t>
const cpu::PreluKernels<scalar_t, weight_t>& kernels() {
  static const auto& chosen = []() -> const cpu::PreluKernels<scalar_t, weight_t>& {
    if constexpr (kHasAvx) {
      const std::string capability = at::get_cpu_capability();
      if (capability == "AVX512") {
        return cpu::AVX512::prelu_kernels<scalar_t, weight_t>();
      }
      if (capability == "AVX2") {
        return cpu::AVX2::prelu_kernels<scalar_t, weight_t>();
      }
    }
    return cpu::DEFAULT::prelu_kernels<scalar_t, weight_t>();
  }();
  return chosen;
}

at::Tensor new_output(const at::Tensor& dense_input) {
  at::Tensor output = empty_output(dense_input);
  advise_huge_pages(output);
  return output;
}

template <typename scalar_t, typename weight_t>
void forward(const PreluArgs& args, const at::Tensor& output) {
  const cpu::ChannelTasks tasks(args.view(), sizeof(scalar_t), /*sums=*/false);
  cpu::ChannelwiseOperands<scalar_t, weight_t, 1> operands{
      {{args.input().const_data_ptr<scalar_t>()}, output.mutable_data_ptr<scalar_t>()},
      args.weight().const_data_ptr<weight_t>()};
  operands.bypass_caches = knobs().nt_stores && tasks.should_bypass_caches(operands.begin.output);
  at::parallel_for(0, tasks.size(), tasks.grain(), [&](int64_t first, int64_t last) {
    kernels<scalar_t, weight_t>().forward(tasks, first, last, operands);
  });
}

// Either gradient may be undefined: it is then not computed.
template <typename scalar_t, typename weight_t>
void backward(
    const PreluArgs& args,
    const at::Tensor& grad_output,
    const at::Tensor& grad_input,
    const at::Tensor& grad_weight) {
  using acc_t = acc_type<scalar_t>;
  const cpu::ChannelTasks tasks(args.view(), sizeof(scalar_t), grad_weight.defined());
  cpu::ChannelwiseOperands<scalar_t, weight_t, 2> operands{
      {{grad_output.const_data_ptr<scalar_t>(), args.input().const_data_ptr<scalar_t>()},
       grad_input.defined() ? grad_input.mutable_data_ptr<scalar_t>() : nullptr},
      args.weight().const_data_ptr<weight_t>()};
  operands.bypass_caches = knobs().nt_stores && tasks.should_bypass_caches(operands.begin.output);

  cpu::ChannelSums<acc_t, weight_t> sums{nullptr, nullptr, args.view().channels};
  at::Tensor partial;
  if (grad_weight.defined()) {
    sums.result = grad_weight.mutable_data_ptr<weight_t>();
    if (tasks.splits() > 1) {
      const int64_t bytes = tasks.splits() * sums.channels * sizeof(cpu::WideSum<acc_t>);
      partial = at::empty({bytes}, at::TensorOptions(at::kByte));
      sums.partial = static_cast<cpu::WideSum<acc_t>*>(partial.mutable_data_ptr());
    }
  }
  at::parallel_for(0, tasks.size(), tasks.grain(), [&](int64_t first, int64_t last) {
    kernels<scalar_t, weight_t>().backward(tasks, first, last, operands, sums);
  });
  if (sums.partial != nullptr) {
    const int64_t grain = cpu::ceil_div(cpu::tuning::kThreadElements, tasks.splits());
    at::parallel_for(0, sums.channels, grain, [&](int64_t first, int64_t last) {
      sums.finish(tasks.splits(), first, last);
    });
  }
}

at::Tensor prelu_cpu(const at::Tensor& input, const at::Tensor& weight) {
  const PreluArgs args(input, weight, "prelu_cpu");
  at::Tensor output = new_output(args.input());
  if (output.numel() > 0) {
    dispatch_prelu_types(input.scalar_type(), weight.scalar_type(), [&](auto scalar, auto slope) {
      forward<typename decltype(scalar)::type, typename decltype(slope)::type>(args, output);
    });
  }
  return output;
}

std::tuple<at::Tensor, at::Tensor> prelu_backward_cpu(
    const at::Tensor& grad_output,
    const at::Tensor& input,
    const at::Tensor& weight,
    std::array<bool, 2> output_mask) {
  const PreluArgs args(input, weight, "prelu_backward_cpu");
  const at::Tensor matching_grad_output = args.match(grad_output);
  at::Tensor grad_input, grad_weight;
  if (output_mask[0]) {
    grad_input = new_output(args.input());
  }
  if (output_mask[1]) {
    grad_weight = at::empty_like(weight, at::MemoryFormat::Contiguous);
  }
  if (args.view().numel() == 0) {
    if (grad_weight.defined()) {
      grad_weight.zero_();
    }
  } else if (output_mask[0] || output_mask[1]) {
    dispatch_prelu_types(input.scalar_type(), weight.scalar_type(), [&](auto scalar, auto slope) {
      backward<typename decltype(scalar)::type, typename decltype(slope)::type>(
          args, matching_grad_output, grad_input, grad_weight);
    });
  }
  return {grad_input, grad_weight};
}

}  // namespace

TORCH_LIBRARY_IMPL(torch_ext, CPU, m) {
  m.impl("prelu", prelu_cpu);
  m.impl("prelu_backward", prelu_backward_cpu);
}

}  // namespace torch_ext
