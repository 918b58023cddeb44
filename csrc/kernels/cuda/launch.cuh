// Defines what launch.h declares, for the source file of an operator to instantiate. Only this file
// uses PyTorch's stream, allocator and checks. Knows no tensors and no operation.
#pragma once

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAMacros.h>
#include <c10/cuda/CUDAStream.h>

#include <array>
#include <cstdint>
#include <mutex>

#include "kernels/cuda/kernels.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/run.cuh"

namespace torch_ext::cuda {

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

struct Gpu {
  int arch;  // as in Tuning
  Device device;
};

inline Gpu ask_gpu(c10::DeviceIndex index, const void* any_kernel) {
  const auto attribute = [&](cudaDeviceAttr name) {
    int value = 0;
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, name, index));
    return value;
  };
  const int arch = 10 * attribute(cudaDevAttrComputeCapabilityMajor) +
                   attribute(cudaDevAttrComputeCapabilityMinor);
  // Only the driver knows whether the code that runs on the GPU was compiled with clusters: where
  // no machine code fits, it translates PTX, which may be for an older GPU.
  cudaFuncAttributes code{};
  C10_CUDA_CHECK(cudaFuncGetAttributes(&code, any_kernel));
  return {
      arch,
      {attribute(cudaDevAttrMultiProcessorCount), attribute(cudaDevAttrMaxThreadsPerMultiProcessor),
       arch >= 90 && code.ptxVersion >= 90}};
}

// The properties of the current GPU, which are queried once. All kernels of this library are
// compiled alike.
inline const Gpu& current_gpu(const void* any_kernel) {
  static std::array<std::once_flag, C10_COMPILE_TIME_MAX_GPUS> asked;
  static std::array<Gpu, C10_COMPILE_TIME_MAX_GPUS> answers;
  const c10::DeviceIndex index = c10::cuda::current_device();
  std::call_once(asked[index], [&] { answers[index] = ask_gpu(index, any_kernel); });
  return answers[index];
}

// What run.cuh needs to start a kernel.
inline constexpr auto kLaunch = [](auto kernel, const Grid& grid, const auto&... arguments) {
  launch(kernel, grid, arguments...);
};

// Memory for kernels on the current stream, for the lifetime of the pointer.
inline c10::DataPtr workspace(int64_t bytes) {
  return c10::cuda::CUDACachingAllocator::get()->allocate(static_cast<size_t>(bytes));
}

template <typename Op, typename scalar_t, typename Step>
void run(const ChannelView& view, Operands<Op, scalar_t> data, const Step& step) {
  const void* any_kernel = reinterpret_cast<const void*>(run_planes<Op, false, scalar_t, Step>);
  const Gpu& gpu = current_gpu(any_kernel);
  const Work work = align(data, view);
  const LaunchPlan plan = plan_launch(work, tuning_of(gpu.arch), gpu.device);
  c10::DataPtr partials;
  if (plan.has_second_kernel()) {
    partials = workspace(plan.workspace_bytes);
    data.partials = static_cast<compute_type<scalar_t>*>(partials.get());
  }
  run_plan(work, plan, data, step, kLaunch);
}

template <typename Step>
void add_rows(const double* rows, int64_t channels, int64_t count, const Step& step) {
  run_finish(rows, channels, count, step, kLaunch);
}

template <typename Function>
void for_each_channel(int64_t count, const Function& function) {
  run_for_each(count, function, kLaunch);
}

}  // namespace torch_ext::cuda

// Instantiates run() of an operation and its step, for one type of element.
#define TORCH_EXT_INSTANTIATE_RUN(Op, scalar_t, ...)             \
  template void torch_ext::cuda::run<Op, scalar_t, __VA_ARGS__>( \
      const torch_ext::ChannelView&, torch_ext::cuda::Operands<Op, scalar_t>, const __VA_ARGS__&);
#define TORCH_EXT_FOR_EACH_TYPE(INSTANTIATE) \
  INSTANTIATE(double)                        \
  INSTANTIATE(float)                         \
  INSTANTIATE(c10::Half)                     \
  INSTANTIATE(c10::BFloat16)
