// PReLU's formulas given to the walkers. Compiled once per instruction set (CPU_CAPABILITY).
#include "kernels/cpu/prelu.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "kernels/cpu/channelwise.h"
#include "kernels/prelu_math.h"

namespace torch_ext::cpu::CPU_CAPABILITY {
namespace {

struct Forward {
  static constexpr int kInputs = 1;
  static constexpr bool kMaps = true;
  static constexpr bool kSums = false;

  template <typename Step, typename Slopes>
  C10_ALWAYS_INLINE static Step map(const std::array<Step, 1>& in, const Slopes& weight) {
    return math::prelu(in[0], weight);
  }
};

template <bool wants_grad_input, bool wants_grad_weight>
struct Backward {
  static constexpr int kInputs = 2;
  static constexpr bool kMaps = wants_grad_input;
  static constexpr bool kSums = wants_grad_weight;

  template <typename Step, typename Slopes>
  C10_ALWAYS_INLINE static Step map(const std::array<Step, 2>& in, const Slopes& weight) {
    return math::prelu_grad_input(in[0], in[1], weight);
  }
  template <typename Step>
  C10_ALWAYS_INLINE static auto term(const std::array<Step, 2>& in) {
    return math::prelu_grad_weight(in[0], in[1]);
  }
};

template <typename scalar_t, typename weight_t>
void forward(
    const ChannelTasks& tasks,
    int64_t first,
    int64_t last,
    const ChannelwiseOperands<scalar_t, weight_t, 1>& operands) {
  run_tasks<Forward, scalar_t, weight_t>(tasks, first, last, operands, {});
}

template <typename scalar_t, typename weight_t>
void backward(
    const ChannelTasks& tasks,
    int64_t first,
    int64_t last,
    const ChannelwiseOperands<scalar_t, weight_t, 2>& operands,
    const ChannelSums<acc_type<scalar_t>, weight_t>& sums) {
  if (sums.result == nullptr) {
    run_tasks<Backward<true, false>, scalar_t, weight_t>(tasks, first, last, operands, sums);
  } else if (operands.begin.output == nullptr) {
    run_tasks<Backward<false, true>, scalar_t, weight_t>(tasks, first, last, operands, sums);
  } else {
    run_tasks<Backward<true, true>, scalar_t, weight_t>(tasks, first, last, operands, sums);
  }
}

}  // namespace

template <typename scalar_t, typename weight_t>
const PreluKernels<scalar_t, weight_t>& prelu_kernels() {
  static constexpr PreluKernels<scalar_t, weight_t> kernels{
      &forward<scalar_t, weight_t>, &backward<scalar_t, weight_t>};
  return kernels;
}

template const PreluKernels<double, double>& prelu_kernels();
template const PreluKernels<float, float>& prelu_kernels();
template const PreluKernels<c10::Half, c10::Half>& prelu_kernels();
template const PreluKernels<c10::Half, float>& prelu_kernels();
template const PreluKernels<c10::BFloat16, c10::BFloat16>& prelu_kernels();
template const PreluKernels<c10::BFloat16, float>& prelu_kernels();

}  // namespace torch_ext::cpu::CPU_CAPABILITY
