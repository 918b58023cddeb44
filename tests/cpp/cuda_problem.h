// A tensor problem for the emulated CUDA engine: operands in guarded memory, and the kernels that
// the launch makes of them. What results should be, the tests say.
#pragma once

#include "cuda_emulation.h"
// clang-format off: the kernels need the emulation's names
#include "kernels/cuda/run.cuh"
#include "kernels/step.h"
// clang-format on

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

// The types of data that are tested. Where a compiler takes long, under sanitizers, it gets fewer.
#ifndef CUDA_TESTED_TYPES
#define CUDA_TESTED_TYPES double, float, c10::Half, c10::BFloat16
#endif

namespace torch_ext::cuda {

using TestedTypes = testing::Types<CUDA_TESTED_TYPES>;

inline constexpr double kInf = std::numeric_limits<double>::infinity();
inline constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

template <typename scalar_t>
scalar_t cast(double value) {
  return static_cast<scalar_t>(static_cast<compute_type<scalar_t>>(value));
}

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

struct Offsets {
  int g;
  int x;
  int output;
};

struct Case {
  ChannelView view;
  Offsets offsets = {0, 0, 0};
  int threads = 32;
  int64_t grid = 0;  // 0: the plan's own
  int unsplit = 2;   // visits up to which sums are not split
  int cluster = 1;   // blocks that can share a sum

  std::string text() const {
    std::ostringstream text;
    text << view.outer << " x " << view.channels << " x " << view.inner << ", offsets " << offsets.g
         << " " << offsets.x << " " << offsets.output << ", threads " << threads << ", grid "
         << grid << ", unsplit " << unsplit << ", cluster " << cluster;
    return text.str();
  }
};

// What the cases of a test have taken.
struct Seen {
  int planes, columns, passes, segments, merged, splits, clusters, unsplit, shifted;
  int64_t positive, negative;  // sides of a select

  void note(const Work& work, const LaunchPlan& plan) {
    const bool is_planes = plan.traversal == Traversal::kPlanes;
    planes += is_planes;
    columns += !is_planes;
    passes += !is_planes && plan.columns.passes > 1;
    segments += !is_planes && plan.columns.tasks.groups > 1;
    merged += !is_planes && plan.columns.row_length > work.view.channels * work.view.inner;
    splits += plan.has_second_kernel();
    clusters += plan.cluster > 1;
    unsplit += work.has_sums() && plan.splits == 1;
    shifted += work.shifted;
  }
};

enum class Fill {
  kRandom,   // sums are rounded
  kExact,    // small integers: every product and sum is exact in the compute type
  kConstant  // the same term everywhere, where naive sums drift
};

// Values per channel: in the data's type or the compute type, one for each channel or one for all.
template <typename scalar_t>
struct Param {
  using compute_t = compute_type<scalar_t>;

  Param(int64_t channels, bool is_compute_type, int64_t stride)
      : is_compute_type(is_compute_type),
        stride(stride),
        narrow(is_compute_type ? 0 : size_of(channels, stride), 0),
        wide(is_compute_type ? size_of(channels, stride) : 0, 0) {}

  static int64_t size_of(int64_t channels, int64_t stride) { return stride == 0 ? 1 : channels; }
  ChannelInput<scalar_t> input() const {
    const void* values = wide.data();
    return {is_compute_type ? values : narrow.data(), is_compute_type, stride};
  }
  ChannelOutput<scalar_t> output() {
    void* values = wide.data();
    return {is_compute_type ? values : narrow.data(), is_compute_type};
  }
  void set(int64_t channel, double value) {
    if (is_compute_type) {
      wide.data()[channel * stride] = static_cast<compute_t>(value);
    } else {
      narrow.data()[channel * stride] = cast<scalar_t>(value);
    }
  }
  compute_t operator[](int64_t channel) const {
    return is_compute_type ? wide.data()[channel * stride]
                           : static_cast<compute_t>(narrow.data()[channel * stride]);
  }

  bool is_compute_type;
  int64_t stride;
  Storage<scalar_t> narrow;
  Storage<compute_t> wide;
};

// Inputs and params for operations that read up to so many. One of a single input reads x.
template <typename scalar_t>
struct Problem {
  using compute_t = compute_type<scalar_t>;
  static constexpr int kInputs = 2;

  // param(i): the type and the stride of param i.
  template <typename MakeParam>
  Problem(const Case& c, Fill fill, int params, const MakeParam& make_param)
      : c(c), inputs{{{c.view.numel(), c.offsets.g}, {c.view.numel(), c.offsets.x}}} {
    std::mt19937 random(static_cast<unsigned>(c.view.numel()));
    std::uniform_real_distribution<double> real(-2, 2);
    std::uniform_int_distribution<int> small(-3, 3);
    const auto value = [&] {
      return fill == Fill::kExact ? small(random) : fill == Fill::kConstant ? -0.3 : real(random);
    };
    for (Storage<scalar_t>& input : inputs) {
      for (int64_t i = 0; i < c.view.numel(); ++i) {
        input.data()[i] = cast<scalar_t>(value());
      }
    }
    for (int i = 0; i < params; ++i) {
      this->params.push_back(make_param(i));
      for (int64_t channel = 0; channel < c.view.channels; ++channel) {
        this->params[i].set(channel, fill == Fill::kExact ? small(random) : real(random));
      }
    }
  }

  Storage<scalar_t>& g() { return inputs[0]; }
  Storage<scalar_t>& x() { return inputs[1]; }
  const Storage<scalar_t>& g() const { return inputs[0]; }
  const Storage<scalar_t>& x() const { return inputs[1]; }
  int64_t channel(int64_t position) const { return position / c.view.inner % c.view.channels; }

  // What the operation sees of an element.
  template <typename Op>
  std::array<compute_t, Op::kInputs> values_at(int64_t position) const {
    std::array<compute_t, Op::kInputs> values;
    for (int i = 0; i < Op::kInputs; ++i) {
      values[i] = static_cast<compute_t>(inputs[kInputs - Op::kInputs + i].data()[position]);
    }
    return values;
  }
  template <typename Op>
  std::array<compute_t, Op::kParams> params_at(int64_t position) const {
    std::array<compute_t, Op::kParams> values;
    for (int i = 0; i < Op::kParams; ++i) {
      values[i] = params[i][channel(position)];
    }
    return values;
  }

  Case c;
  std::array<Storage<scalar_t>, kInputs> inputs;
  std::vector<Param<scalar_t>> params;
};

// Starts kernels in the emulation, with no more blocks than `grid` if that is not 0.
struct EmulatedLaunch {
  int64_t grid = 0;

  template <typename Kernel, typename... Arguments>
  void operator()(Kernel* kernel, Grid wanted, const Arguments&... arguments) const {
    if (grid != 0) {
      wanted.blocks = std::min(round_up(grid, int64_t{wanted.cluster}), wanted.blocks);
    }
    cuda_emulation::launch(kernel, {wanted.blocks, wanted.threads, wanted.cluster}, arguments...);
  }
};

// The operation on a small device. output: null if it has none or it is not wanted.
template <typename Op, typename scalar_t, typename Step = NoStep>
void run(
    const Problem<scalar_t>& problem,
    std::type_identity_t<Storage<scalar_t>>* output,
    Seen& seen,
    const Step& step = {}) {
  using compute_t = compute_type<scalar_t>;
  const Case& c = problem.c;
  Operands<Op, scalar_t> data{};
  for (int i = 0; i < Op::kInputs; ++i) {
    data.inputs[i] = problem.inputs[problem.kInputs - Op::kInputs + i].data();
  }
  for (scalar_t*& pointer : data.outputs) {
    pointer = output == nullptr ? nullptr : output->data();
  }
  for (int i = 0; i < Op::kParams; ++i) {
    data.params[i] = problem.params[i].input();
  }
  const Work work = align(data, c.view);
  const Tuning tuning{0, c.threads, 128, 8, 2, c.unsplit, c.cluster, 512};
  const LaunchPlan plan = plan_launch(work, tuning, {1, 128, true});
  std::vector<compute_t> workspace(plan.workspace_bytes / sizeof(compute_t), compute_t(kNaN));
  data.partials = workspace.data();
  run_plan(work, plan, data, step, EmulatedLaunch{c.grid});
  seen.note(work, plan);
}

// A channel's sum in 113 bits, the size of its terms, and what IEEE addition gives.
struct ExactSum {
  __float128 value = 0;
  __float128 size = 0;
  double ieee = 0;

  // a * b, exact.
  void add(double a, double b) {
    const __float128 term = static_cast<__float128>(a) * b;
    value += term;
    size += term < 0 ? -term : term;
    ieee += a * b;
  }
};

// The contract's bound: 16 units of the terms' size (8 for double) and the last rounding of the
// result's type; where a term is not finite, what IEEE addition gives.
template <typename compute_t>
void check_sum(double got, const ExactSum& sum, double last_rounding) {
  if (!std::isfinite(sum.ieee)) {
    ASSERT_TRUE(std::isnan(sum.ieee) ? std::isnan(got) : got == sum.ieee)
        << got << ", not " << sum.ieee;
    return;
  }
  const double units = std::is_same_v<compute_t, double> ? 8 * 0x1p-53 : 16 * 0x1p-24;
  const double error = std::abs(static_cast<double>(static_cast<__float128>(got) - sum.value));
  const double bound = units * static_cast<double>(sum.size) + last_rounding * std::abs(got);
  ASSERT_LE(error, bound) << got;
}

// Bits, where -0 is not 0 and every NaN is the same.
template <typename T>
bool same(T a, T b) {
  if (std::isnan(static_cast<double>(a)) || std::isnan(static_cast<double>(b))) {
    return std::isnan(static_cast<double>(a)) && std::isnan(static_cast<double>(b));
  }
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

}  // namespace torch_ext::cuda
