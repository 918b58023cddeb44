// The CUDA engine's entry: runs an operation on the current GPU and stream. Defined in launch.cuh,
// instantiated for the operations of each `kernels/cuda/<op>.cu`. Host code: plain pointers, no
// tensors.
#pragma once

#include <cstdint>

#include "kernels/channel_view.h"
#include "kernels/cuda/operands.h"
#include "kernels/step.h"

namespace torch_ext::cuda {

// Runs the operation on every element, and the step on every channel's sums. For at least one
// element.
template <typename Op, typename scalar_t, typename Step = NoStep>
void run(const ChannelView& view, Operands<Op, scalar_t> data, const Step& step = {});

// Adds rows of values, one for each channel, in their order, and takes the step.
template <typename Step>
void add_rows(const double* rows, int64_t channels, int64_t count, const Step& step);

// function(i) for i from 0 to count - 1.
template <typename Function>
void for_each_channel(int64_t count, const Function& function);

}  // namespace torch_ext::cuda
