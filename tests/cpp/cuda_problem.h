// A tensor problem for the emulated CUDA kernels: operands in guarded memory, the launches that the
// operators make of them, and an oracle that shares no code with the kernels.
#pragma once

#include "cuda_emulation.h"
// clang-format off: the kernels need the emulation's names
#include "kernels/cuda/channelwise.cuh"
#include "kernels/cuda/prelu_operations.h"
// clang-format on

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <type_traits>
#include <vector>

namespace torch_ext::cuda {

inline constexpr double kInf = std::numeric_limits<double>::infinity();
inline constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// Values in memory `offset` elements above a 16-byte boundary, nothing behind them, so that the
// address sanitizer sees the first byte too many; the elements in front are guarded by a check of
// their own.
template <typename T>
class Storage {
 public:
  Storage(int64_t size, int offset) : size_(size), offset_(offset) {
    const size_t bytes = (size + offset) * sizeof(T);
    memory_.reset(static_cast<T*>(::operator new(bytes, std::align_val_t{16})));
    std::memset(static_cast<void*>(memory_.get()), kFill, bytes);
  }
  T* data() { return memory_.get() + offset_; }
  const T* data() const { return memory_.get() + offset_; }
  int64_t size() const { return size_; }
  bool untouched_in_front() const {
    const auto* bytes = reinterpret_cast<const unsigned char*>(memory_.get());
    for (size_t i = 0; i < offset_ * sizeof(T); ++i) {
      if (bytes[i] != kFill) {
        return false;
      }
    }
    return true;
  }

 private:
  static constexpr unsigned char kFill = 0x7F;
  struct Free {
    void operator()(T* memory) const { ::operator delete(memory, std::align_val_t{16}); }
  };
  int64_t size_;
  int offset_;
  std::unique_ptr<T[], Free> memory_;
};

template <typename scalar_t>
using acc_of = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

struct Offsets {
  int input;
  int grad_output;
  int output;
};

struct Outputs {
  bool grad_input;
  bool grad_weight;
};

struct Case {
  ChannelView view;
  Offsets offsets = {0, 0, 0};
  int threads = 32;
  int64_t grid = 0;  // 0: the plan's own
  int unsplit = 2;   // visits up to which sums are not split
  int cluster = 1;   // blocks that can share a sum
};

// What the cases of a test have taken.
struct Seen {
  int planes, columns, passes, segments, merged, splits, clusters, unsplit, shifted, positive,
      negative;
};

enum class Fill {
  kRandom,   // sums are rounded
  kExact,    // every product and sum is exact in the accumulation type
  kConstant  // the same term everywhere, where naive sums drift
};

template <typename scalar_t, typename weight_t>
struct Problem {
  using acc_t = acc_of<scalar_t>;

  Problem(const Case& c, Fill fill, unsigned seed)
      : c(c),
        input(c.view.numel(), c.offsets.input),
        grad_output(c.view.numel(), c.offsets.grad_output),
        weight(c.view.channels, 0) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<double> real(-2, 2);
    std::uniform_int_distribution<int> small(-3, 3);
    const auto value = [&] {
      return fill == Fill::kExact ? small(random) : fill == Fill::kConstant ? -0.3 : real(random);
    };
    for (int64_t i = 0; i < c.view.numel(); ++i) {
      input.data()[i] = static_cast<scalar_t>(static_cast<acc_t>(value()));
      grad_output.data()[i] = static_cast<scalar_t>(static_cast<acc_t>(value()));
    }
    for (int64_t i = 0; i < c.view.channels; ++i) {
      weight.data()[i] = static_cast<weight_t>(static_cast<acc_t>(real(random)));
    }
  }

  int64_t channel(int64_t position) const { return position / c.view.inner % c.view.channels; }

  Case c;
  Storage<scalar_t> input;
  Storage<scalar_t> grad_output;
  Storage<weight_t> weight;
};

// As the operator does it.
template <typename scalar_t>
int shift_of(const scalar_t* pointer) {
  return static_cast<int>(
      reinterpret_cast<uintptr_t>(pointer) / sizeof(scalar_t) % Pack<scalar_t>::kSize);
}

template <typename Op, bool kShifted, typename scalar_t, typename acc_t>
void launch_walk(const LaunchPlan& plan, const Operands<scalar_t, acc_t>& data) {
  if (plan.traversal == Traversal::kPlanes) {
    const auto kernel = walk_planes<Op, kShifted, scalar_t, acc_t>;
    cuda_emulation::launch(kernel, {plan.grid, plan.threads, plan.cluster}, plan.planes, data);
  } else {
    const auto kernel = walk_columns<Op, kShifted, scalar_t, acc_t>;
    cuda_emulation::launch(kernel, {plan.grid, plan.threads, plan.cluster}, plan.columns, data);
  }
}

template <typename Op, typename scalar_t, typename weight_t>
void run(
    Problem<scalar_t, weight_t>& problem,
    Storage<scalar_t>* output,
    Storage<weight_t>* grad_weight,
    Seen& seen) {
  using acc_t = acc_of<scalar_t>;
  constexpr int kVector = Pack<scalar_t>::kSize;
  const Case& c = problem.c;
  constexpr bool kWeightIsAcc = std::is_same_v<weight_t, acc_t>;
  Operands<scalar_t, acc_t> data{};
  data.input = problem.input.data();
  data.grad_output = Op::kReadsGradOutput ? problem.grad_output.data() : nullptr;
  data.output = output == nullptr ? nullptr : output->data();
  data.weight = {problem.weight.data(), kWeightIsAcc};
  data.grad_weight = {grad_weight == nullptr ? nullptr : grad_weight->data(), kWeightIsAcc};
  const int base = shift_of(output == nullptr ? data.input : data.output);
  data.input_shift = (shift_of(data.input) - base + kVector) % kVector;
  data.grad_output_shift =
      Op::kReadsGradOutput ? (shift_of(data.grad_output) - base + kVector) % kVector : 0;
  const bool shifted = data.input_shift != 0 || data.grad_output_shift != 0;

  const Tuning tuning{0, c.threads, 128, 8, 2, c.unsplit, c.cluster, 512};
  const Work work{c.view, sizeof(scalar_t), sizeof(acc_t), base, shifted, Op::kReduces};
  LaunchPlan plan = plan_launch(work, tuning, {1, 128, true});
  if (c.grid != 0) {
    plan.grid = std::min(round_up(c.grid, int64_t{plan.cluster}), plan.grid);
  }
  std::vector<acc_t> workspace(plan.workspace_bytes / sizeof(acc_t), acc_t(kNaN));
  data.partials = workspace.data();
  if (shifted) {
    launch_walk<Op, true>(plan, data);
  } else {
    launch_walk<Op, false>(plan, data);
  }
  if (plan.has_second_kernel()) {
    const FinishPlan finish = plan_finish(c.view.channels, plan.splits);
    const auto kernel = finish_sums<scalar_t, acc_t>;
    const acc_t* partials = data.partials;
    cuda_emulation::launch(
        kernel, {finish.grid, finish.threads}, finish, partials, data.grad_weight);
  }
  const bool planes = plan.traversal == Traversal::kPlanes;
  seen.planes += planes;
  seen.columns += !planes;
  seen.passes += !planes && plan.columns.passes > 1;
  seen.segments += !planes && plan.columns.tasks.groups > 1;
  seen.merged += !planes && plan.columns.row_length > c.view.channels * c.view.inner;
  seen.splits += plan.has_second_kernel();
  seen.clusters += plan.cluster > 1;
  seen.unsplit += Op::kReduces && plan.splits == 1;
  seen.shifted += shifted;
}

// Bits, where -0 is not 0 and every NaN is the same.
template <typename T>
bool same(T a, T b) {
  if (std::isnan(static_cast<double>(a)) || std::isnan(static_cast<double>(b))) {
    return std::isnan(static_cast<double>(a)) && std::isnan(static_cast<double>(b));
  }
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

// One product, rounded to the accumulation type, then to storage.
template <typename scalar_t, typename weight_t>
scalar_t expected(scalar_t x, scalar_t value, weight_t weight) {
  using acc_t = acc_of<scalar_t>;
  if (static_cast<double>(x) > 0) {
    return value;
  }
  return static_cast<scalar_t>(
      static_cast<acc_t>(static_cast<double>(weight) * static_cast<double>(value)));
}

template <typename scalar_t, typename weight_t>
void check_elements(
    const Problem<scalar_t, weight_t>& problem,
    const Storage<scalar_t>& result,
    const Storage<scalar_t>& values,
    const char* what,
    Seen& seen) {
  for (int64_t i = 0; i < result.size(); ++i) {
    const scalar_t x = problem.input.data()[i];
    const weight_t weight = problem.weight.data()[problem.channel(i)];
    ASSERT_TRUE(same(result.data()[i], expected(x, values.data()[i], weight)))
        << what << " at " << i << ": " << static_cast<double>(result.data()[i]) << " for x "
        << static_cast<double>(x) << ", weight " << static_cast<double>(weight);
    ++(static_cast<double>(x) > 0 ? seen.positive : seen.negative);
  }
  ASSERT_TRUE(result.untouched_in_front()) << what;
}

// Sums in 113 bits. The bound is the contract's: 16 units of Σ|x*g| and the last rounding; where a
// term is not finite, what IEEE addition gives.
template <typename scalar_t, typename weight_t>
void check_sums(
    const Problem<scalar_t, weight_t>& problem, const Storage<weight_t>& result, bool exact) {
  using acc_t = acc_of<scalar_t>;
  const int64_t channels = problem.c.view.channels;
  std::vector<__float128> sum(channels), size(channels);
  std::vector<double> ieee(channels);
  for (int64_t i = 0; i < problem.input.size(); ++i) {
    const double x = static_cast<double>(problem.input.data()[i]);
    const double g = static_cast<double>(problem.grad_output.data()[i]);
    if (x > 0) {
      continue;
    }
    const __float128 term = static_cast<__float128>(x) * g;
    const int64_t channel = problem.channel(i);
    sum[channel] += term;
    size[channel] += term < 0 ? -term : term;
    ieee[channel] += x * g;
  }
  for (int64_t c = 0; c < channels; ++c) {
    const double got = static_cast<double>(result.data()[c]);
    if (!std::isfinite(ieee[c])) {
      ASSERT_TRUE(same(got, ieee[c])) << "channel " << c << ": " << got << ", not " << ieee[c];
      continue;
    }
    const weight_t rounded = static_cast<weight_t>(static_cast<acc_t>(sum[c]));
    if (exact) {
      ASSERT_TRUE(got == static_cast<double>(rounded)) << "channel " << c;
      continue;
    }
    const double summation = std::is_same_v<acc_t, double> ? 8 * 0x1p-53 : 16 * 0x1p-24;
    const double last = std::is_same_v<weight_t, double>      ? 0x1p-53
                        : std::is_same_v<weight_t, float>     ? 0x1p-24
                        : std::is_same_v<weight_t, c10::Half> ? 0x1p-11
                                                              : 0x1p-8;
    const double error = std::abs(static_cast<double>(static_cast<__float128>(got) - sum[c]));
    const double bound = summation * static_cast<double>(size[c]) + last * std::abs(got);
    ASSERT_LE(error, bound) << "channel " << c << " is " << got;
  }
}

template <typename scalar_t, typename weight_t>
void check_backward(Problem<scalar_t, weight_t>& problem, Outputs outputs, bool exact, Seen& seen) {
  Storage<scalar_t> grad_input(problem.input.size(), problem.c.offsets.output);
  Storage<weight_t> grad_weight(problem.c.view.channels, 0);
  Storage<scalar_t>* target = outputs.grad_input ? &grad_input : nullptr;
  if (outputs.grad_weight) {
    run<PreluBackward<true>>(problem, target, &grad_weight, seen);
    check_sums(problem, grad_weight, exact);
  } else {
    run<PreluBackward<false>, scalar_t, weight_t>(problem, target, nullptr, seen);
  }
  if (outputs.grad_input) {
    check_elements(problem, grad_input, problem.grad_output, "grad_input", seen);
  }
}

template <typename scalar_t, typename weight_t>
void check_all(const Case& c, Fill fill, Seen& seen) {
  SCOPED_TRACE(
      testing::Message() << c.view.outer << " x " << c.view.channels << " x " << c.view.inner
                         << ", offsets " << c.offsets.input << " " << c.offsets.grad_output << " "
                         << c.offsets.output << ", threads " << c.threads << ", grid " << c.grid
                         << ", unsplit " << c.unsplit << ", cluster " << c.cluster << ", bytes "
                         << sizeof(scalar_t) << " and " << sizeof(weight_t));
  Problem<scalar_t, weight_t> problem(c, fill, static_cast<unsigned>(c.view.numel()));
  Storage<scalar_t> output(problem.input.size(), c.offsets.output);
  run<PreluForward, scalar_t, weight_t>(problem, &output, nullptr, seen);
  check_elements(problem, output, problem.input, "output", seen);
  check_backward(problem, {true, true}, fill == Fill::kExact, seen);
}

}  // namespace torch_ext::cuda
