// What the CPU engine's tests share: memory with guards, threads, and an operation on a tensor of
// its own that is compared with the oracle.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu_oracle.h"
#include "kernels/cpu/sweep.h"

namespace torch_ext::cpu_testing {

using cpu::InstructionSet, cpu::kTuning, cpu::Plan, cpu::Tuning;

using DataTypes = ::testing::Types<double, float, c10::Half, c10::BFloat16>;

// Values between guards, `offset` elements behind the beginning of a cache line.
template <typename T>
class Guarded {
 public:
  Guarded(int64_t size, int64_t offset)
      : size_(size), storage_(size + offset + 2 * kGuard + kTuning.cache_line, kSentinel()) {
    void* begin = storage_.data() + kGuard;
    size_t space = storage_.size() * sizeof(T);
    std::align(kTuning.cache_line, size * sizeof(T), begin, space);
    offset_ = static_cast<T*>(begin) - storage_.data() + offset;
  }

  T* data() { return storage_.data() + offset_; }
  const T* data() const { return storage_.data() + offset_; }
  T& operator[](int64_t i) { return data()[i]; }
  const T& operator[](int64_t i) const { return data()[i]; }
  void reset() { std::fill_n(data(), size_, kSentinel()); }
  bool guards_intact() const {
    return std::all_of(storage_.begin(), storage_.begin() + offset_, is_sentinel) &&
           std::all_of(storage_.begin() + offset_ + size_, storage_.end(), is_sentinel);
  }

 private:
  static constexpr int64_t kGuard = 80;
  static T kSentinel() { return T(-77.0f); }
  static bool is_sentinel(const T& value) {
    return static_cast<double>(value) == static_cast<double>(kSentinel());
  }

  int64_t offset_;
  int64_t size_;
  std::vector<T> storage_;
};

// A Runtime (sweep.h). The work is handed out in pieces of `piece` tasks (0: as many as there are),
// in random order; memory comes full of NaN.
class Threads {
 public:
  explicit Threads(int64_t threads = 1, int64_t piece = 0) : threads_(threads), piece_(piece) {}

  template <typename Body>
  void parallel_for(int64_t size, int64_t grain, const Body& body) const {
    EXPECT_GE(size, 1);
    EXPECT_GE(grain, 1);
    ++calls_;
    const int64_t piece = piece_ > 0 ? piece_ : ceil_div(size, threads_);
    std::vector<int64_t> order(ceil_div(size, piece));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random_);
    const int64_t pieces = order.size();
    const int64_t threads = std::min(pieces, threads_);
    at_once_ = std::max(at_once_, threads);
    const auto work = [&](int64_t thread) {
      for (int64_t i = thread; i < pieces; i += threads) {
        body(order[i] * piece, std::min((order[i] + 1) * piece, size));
      }
    };
    std::vector<std::jthread> others;
    for (int64_t thread = 1; thread < threads; ++thread) {
      others.emplace_back(work, thread);
    }
    work(0);
  }

  cpu::Memory allocate(int64_t bytes) const {
    void* const memory = std::malloc(bytes);
    std::memset(memory, 0xFF, bytes);
    return {memory, std::free};
  }

  int64_t calls() const { return calls_; }      // of parallel_for()
  int64_t at_once() const { return at_once_; }  // the most threads that had work

 private:
  int64_t threads_;
  int64_t piece_;
  mutable std::mt19937 random_{5};
  mutable int64_t calls_ = 0;
  mutable int64_t at_once_ = 0;
};

// Values per channel in both types that a kernel may meet.
template <typename scalar_t>
struct Params {
  using compute_t = compute_type<scalar_t>;

  Guarded<scalar_t> narrow;
  Guarded<compute_t> wide;

  Params(int64_t channels, int64_t offset) : narrow(channels, offset), wide(channels, offset) {}

  ChannelInput<scalar_t> input(bool in_compute_type, int64_t stride) const {
    if (in_compute_type) {
      return {wide.data(), true, stride};
    }
    return {narrow.data(), false, stride};
  }
};

struct Options {
  int64_t offset = 0;        // of tensors, behind a cache line; each gets one of its own
  bool random = false;       // else small integers and powers of two: all results are exact
  bool wide_params = false;  // in the compute type
  int64_t param_stride = 1;
  bool wants_outputs = true;
};

// An operation on a tensor of its own.
template <typename Op, typename scalar_t>
class Problem {
 public:
  using compute_t = compute_type<scalar_t>;
  using TheOracle = Oracle<Op, scalar_t>;
  using Totals = typename TheOracle::Totals;

  Problem(const ChannelView& view, const Options& options, std::mt19937& random)
      : view_(view),
        options_(options),
        random_(random),
        totals_(view.channels),
        steps_(view.channels) {
    for (int i = 0; i < Op::kInputs; ++i) {
      inputs_.emplace_back(view.numel(), (options.offset + 3 * i) % 16);
    }
    for (int o = 0; o < Op::kOutputs; ++o) {
      outputs_.emplace_back(view.numel(), options.offset * 5 % 16);
    }
    for (int p = 0; p < Op::kParams; ++p) {
      params_.emplace_back(view.channels, (options.offset + p) % 16);
      fill(params_[p], p);
    }
    for (int64_t i = 0; i < view.numel(); ++i) {
      fill(i);
    }
    oracle_ = std::make_unique<TheOracle>(view, operands(), !options.random);
  }

  cpu::Operands<Op, scalar_t> operands() {
    cpu::Operands<Op, scalar_t> operands{};
    for (int i = 0; i < Op::kInputs; ++i) {
      operands.inputs[i] = inputs_[i].data();
    }
    for (int o = 0; o < Op::kOutputs && options_.wants_outputs; ++o) {
      operands.outputs[o] = outputs_[o].data();
    }
    for (int p = 0; p < Op::kParams; ++p) {
      operands.params[p] = params_[p].input(options_.wide_params, options_.param_stride);
    }
    return operands;
  }

  // Runs the operation and compares what it gave.
  template <typename Runtime>
  void check(InstructionSet set, const Runtime& runtime, const Tuning& tuning = kTuning) {
    SCOPED_TRACE(description(set));
    for (Guarded<scalar_t>& output : outputs_) {
      output.reset();
    }
    std::fill(steps_.begin(), steps_.end(), 0);
    const auto step = [this](int64_t channel, const Totals& totals) {
      totals_[channel] = totals;
      ++steps_[channel];
    };
    cpu::run(view_, {set, true, 0, tuning}, runtime, cpu::Sweep(operands(), step));
    if (options_.wants_outputs) {
      oracle_->expect_outputs(operands().outputs);
    }
    oracle_->expect_sums(totals_);
    for (const int steps : steps_) {
      ASSERT_EQ(steps, Op::kSums > 0 ? 1 : 0);
    }
    const auto intact = [](const auto& values) { return values.guards_intact(); };
    EXPECT_TRUE(std::all_of(inputs_.begin(), inputs_.end(), intact));
    EXPECT_TRUE(std::all_of(outputs_.begin(), outputs_.end(), intact));
  }

  // On every instruction set, in one go and task by task.
  void check_all(const Tuning& tuning = kTuning) {
    for (const InstructionSet set : cpu::supported_instruction_sets()) {
      check(set, Threads(1), tuning);
      const auto in_one_go = totals_;
      check(set, Threads(1, 1), tuning);
      for (int64_t c = 0; c < view_.channels; ++c) {
        for (int s = 0; s < Op::kSums; ++s) {
          ASSERT_TRUE(same_bits(totals_[c][s], in_one_go[c][s])) << description(set) << ' ' << c;
        }
      }
    }
  }

  Plan plan(const Tuning& tuning = kTuning) const {
    return Plan(view_, sizeof(scalar_t), counts_of<Op>(), tuning);
  }
  bool bypasses_caches(const Tuning& tuning) const {
    return plan(tuning).should_bypass_caches(outputs_[0].data());
  }
  const std::vector<Totals>& totals() const { return totals_; }
  const TheOracle& oracle() const { return *oracle_; }

 private:
  void fill(Params<scalar_t>& param, int index) {
    constexpr std::array kExact{0.5, -1.0, 2.0, -0.25, 1.0, -2.0, 0.25};
    for (int64_t c = 0; c < view_.channels; ++c) {
      double value = kExact[(3 * c + 2 * index) % kExact.size()];
      if (options_.random) {
        value = std::uniform_real_distribution(0.6, 1.0)(random_) * (random_() % 2 == 0 ? 1 : -1);
      }
      param.narrow[c] = to_scalar<scalar_t>(value);
      param.wide[c] = static_cast<compute_t>(value);
    }
  }

  // Draws until rounding cannot change the side that is taken.
  void fill(int64_t i) {
    do {
      for (Guarded<scalar_t>& input : inputs_) {
        input[i] = to_scalar<scalar_t>(
            options_.random ? std::uniform_real_distribution(-4.0, 4.0)(random_)
                            : static_cast<double>(random_() % 5) - 2);
      }
    } while (options_.random &&
             (TheOracle::element(view_, operands(), i), TheOracle::B::ambiguous));
  }

  std::string description(InstructionSet set) const {
    const std::string by = " x ";
    return std::string(cpu::name_of(set)) + ' ' + std::to_string(view_.outer) + by +
           std::to_string(view_.channels) + by + std::to_string(view_.inner) + ", offset " +
           std::to_string(options_.offset) + ", operation " + typeid(Op).name();
  }

  ChannelView view_;
  Options options_;
  std::mt19937& random_;
  std::vector<Guarded<scalar_t>> inputs_, outputs_;
  std::vector<Params<scalar_t>> params_;
  std::unique_ptr<TheOracle> oracle_;
  std::vector<Totals> totals_;
  std::vector<int> steps_;
};

}  // namespace torch_ext::cpu_testing
