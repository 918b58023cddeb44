// torch_ext::prelu and torch_ext::prelu_backward for CUDA tensors: from checked tensors to
// pointers, a launch plan and the walkers of kernels/cuda. Knows no formula and no layout.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAMacros.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <tuple>

#include "kernels/cuda/channelwise.cuh"
#include "kernels/cuda/launch_plan.h"
#include "kernels/cuda/prelu_operations.h"
#include "kernels/prelu_math.h"
#include "ops/prelu_args.h"
#include "ops/prelu_types.h"

namespace torch_ext {
namespace {

struct Grid {
  int64_t blocks;
  int threads;
  int cluster = 1;
};

// Every kernel starts here: on the current stream, and with its launch checked.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const Grid& grid, const Arguments&... arguments) {
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(grid.cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.blocks));
  config.blockDim = dim3(static_cast<unsigned>(grid.threads));
  config.stream = c10::cuda::getCurrentCUDAStream();
  config.attrs = &cluster;
  config.numAttrs = grid.cluster > 1 ? 1 : 0;
  C10_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, arguments...));
}

int attribute(cudaDeviceAttr name, c10::DeviceIndex device) {
  int value = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, name, device));
  return value;
}

// Whether the code that runs on the current device was compiled with clusters. Only the driver
// knows: where no machine code fits, it translates PTX, which may be older than the device.
bool built_with_clusters(c10::DeviceIndex device) {
  enum : uint8_t { kUnknown, kNo, kYes };
  static std::array<std::atomic<uint8_t>, C10_COMPILE_TIME_MAX_GPUS> answers{};
  std::atomic<uint8_t>& answer = answers[device];
  if (answer == kUnknown) {
    cudaFuncAttributes code{};
    C10_CUDA_CHECK(cudaFuncGetAttributes(&code, cuda::finish_sums<float, float>));
    answer = code.ptxVersion >= 90 ? kYes : kNo;  // 90: compute capability 9.0
  }
  return answer == kYes;
}

cuda::LaunchPlan plan_for(const cuda::Work& work, c10::DeviceIndex device) {
  const int arch = 10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
                   attribute(cudaDevAttrComputeCapabilityMinor, device);
  return cuda::plan_launch(
      work, cuda::tuning_of(arch),
      {attribute(cudaDevAttrMultiProcessorCount, device),
       attribute(cudaDevAttrMaxThreadsPerMultiProcessor, device),
       arch >= 90 && built_with_clusters(device)});
}

// Elements from the last 16-byte boundary to this one.
template <typename scalar_t>
int shift_of(const scalar_t* pointer) {
  return static_cast<int>(
      reinterpret_cast<uintptr_t>(pointer) / sizeof(scalar_t) % cuda::Pack<scalar_t>::kSize);
}

// Fills in what follows from the pointers' alignment: slots start at the boundaries of the tensor
// that is written, other tensors are read relative to them.
template <typename scalar_t, typename acc_t>
cuda::Work align(cuda::Operands<scalar_t, acc_t>& data, const ChannelView& view, bool reduces) {
  constexpr int kVector = cuda::Pack<scalar_t>::kSize;
  const int base = shift_of(data.output != nullptr ? data.output : data.input);
  const auto relative = [&](const scalar_t* pointer) {
    return pointer == nullptr ? 0 : (shift_of(pointer) - base + kVector) % kVector;
  };
  data.input_shift = relative(data.input);
  data.grad_output_shift = relative(data.grad_output);
  const bool shifted = data.input_shift != 0 || data.grad_output_shift != 0;
  return {view, sizeof(scalar_t), sizeof(acc_t), base, shifted, reduces};
}

template <typename Op, bool kShifted, typename scalar_t, typename acc_t>
void walk(const cuda::LaunchPlan& plan, const cuda::Operands<scalar_t, acc_t>& data) {
  if (plan.traversal == cuda::Traversal::kPlanes) {
    const auto kernel = cuda::walk_planes<Op, kShifted, scalar_t, acc_t>;
    launch(kernel, {plan.grid, plan.threads, plan.cluster}, plan.planes, data);
  } else {
    const auto kernel = cuda::walk_columns<Op, kShifted, scalar_t, acc_t>;
    launch(kernel, {plan.grid, plan.threads, plan.cluster}, plan.columns, data);
  }
}

template <typename Op, typename scalar_t, typename acc_t>
void walk(
    const cuda::Work& work,
    const cuda::LaunchPlan& plan,
    const cuda::Operands<scalar_t, acc_t>& data) {
  if (work.shifted) {
    walk<Op, true>(plan, data);
  } else {
    walk<Op, false>(plan, data);
  }
}

template <typename Op, typename scalar_t, typename acc_t>
void map(const PreluArgs& args, cuda::Operands<scalar_t, acc_t> data) {
  const cuda::Work work = align(data, args.view(), false);
  walk<Op>(work, plan_for(work, args.input().device().index()), data);
}

// The same with the sums of all channels; the second kernel only where a cluster is too small.
template <typename Op, typename scalar_t, typename acc_t>
void map_reduce(const PreluArgs& args, cuda::Operands<scalar_t, acc_t> data) {
  const cuda::Work work = align(data, args.view(), true);
  const cuda::LaunchPlan plan = plan_for(work, args.input().device().index());
  at::Tensor workspace;
  if (plan.has_second_kernel()) {
    workspace = at::empty({plan.workspace_bytes}, args.input().options().dtype(at::kByte));
    data.partials = static_cast<acc_t*>(workspace.mutable_data_ptr());
  }
  walk<Op>(work, plan, data);
  if (plan.has_second_kernel()) {
    const cuda::FinishPlan finish = cuda::plan_finish(args.view().channels, plan.splits);
    const auto kernel = cuda::finish_sums<scalar_t, acc_t>;
    const acc_t* partials = data.partials;
    launch(kernel, {finish.grid, finish.threads}, finish, partials, data.grad_weight);
  }
}

at::Tensor prelu_cuda(const at::Tensor& input, const at::Tensor& weight) {
  const PreluArgs args(input, weight, "prelu_cuda");
  const c10::cuda::CUDAGuard guard(args.input().device());
  at::Tensor output = empty_output(args.input());
  if (output.numel() == 0) {
    return output;
  }
  dispatch_prelu_types(
      input.scalar_type(), weight.scalar_type(), [&](auto data_tag, auto weight_tag) {
        using scalar_t = typename decltype(data_tag)::type;
        using weight_t = typename decltype(weight_tag)::type;
        using acc_t = acc_type<scalar_t>;
        cuda::Operands<scalar_t, acc_t> data{};
        data.input = args.input().template const_data_ptr<scalar_t>();
        data.weight = {args.weight().const_data_ptr(), std::is_same_v<weight_t, acc_t>};
        data.output = output.template mutable_data_ptr<scalar_t>();
        map<cuda::PreluForward>(args, data);
      });
  return output;
}

std::tuple<at::Tensor, at::Tensor> prelu_backward_cuda(
    const at::Tensor& grad_output,
    const at::Tensor& input,
    const at::Tensor& weight,
    std::array<bool, 2> output_mask) {
  const PreluArgs args(input, weight, "prelu_backward_cuda");
  const c10::cuda::CUDAGuard guard(args.input().device());
  const at::Tensor matched = args.match(grad_output);
  const bool empty = args.input().numel() == 0;
  at::Tensor grad_input;
  at::Tensor grad_weight;
  if (output_mask[0]) {
    grad_input = empty_output(args.input());
  }
  if (output_mask[1]) {
    grad_weight = empty ? at::zeros(weight.sizes(), weight.options())
                        : at::empty(weight.sizes(), weight.options());
  }
  if (empty || (!output_mask[0] && !output_mask[1])) {
    return {grad_input, grad_weight};
  }
  dispatch_prelu_types(
      input.scalar_type(), weight.scalar_type(), [&](auto data_tag, auto weight_tag) {
        using scalar_t = typename decltype(data_tag)::type;
        using weight_t = typename decltype(weight_tag)::type;
        using acc_t = acc_type<scalar_t>;
        cuda::Operands<scalar_t, acc_t> data{};
        data.input = args.input().template const_data_ptr<scalar_t>();
        data.grad_output = matched.template const_data_ptr<scalar_t>();
        data.weight = {args.weight().const_data_ptr(), std::is_same_v<weight_t, acc_t>};
        if (output_mask[0]) {
          data.output = grad_input.template mutable_data_ptr<scalar_t>();
        }
        if (output_mask[1]) {
          data.grad_weight = {grad_weight.mutable_data_ptr(), std::is_same_v<weight_t, acc_t>};
          map_reduce<cuda::PreluBackward<true>>(args, data);
        } else {
          map<cuda::PreluBackward<false>>(args, data);
        }
      });
  return {grad_input, grad_weight};
}

}  // namespace

TORCH_LIBRARY_IMPL(torch_ext, CUDA, m) {
  m.impl("prelu", &prelu_cuda);
  m.impl("prelu_backward", &prelu_backward_cuda);
}

}  // namespace torch_ext
