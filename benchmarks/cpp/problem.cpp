#include "problem.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/cpu/last_level_cache.h"
#include "kernels/cpu/sweep.h"
#include "kernels/prelu.h"
#include "parallel.h"

namespace torch_ext::bench {
namespace {

// Where the buffers begin in their pages, in bytes. A load waits for an earlier store that is still
// in flight to the same last 12 address bits. Loads here run 704 and 1408 bytes ahead of the stores
// in that circle of 4096, and up to 64 stores of 32 bytes are in flight: neither input ever meets
// one. Whole cache lines, and not the same sets of the first-level cache.
constexpr size_t kResultOffset = 0;
constexpr size_t kInputOffset = 704;
constexpr size_t kGradOutputOffset = 1408;

constexpr size_t kCacheLine = 64;

cpu::InstructionSet best_instruction_set() {
  static const cpu::InstructionSet best = cpu::supported_instruction_sets().back();
  return best;
}

// As launch.cpp runs the operators.
cpu::RunOptions options_of(int threads) {
  static const cpu::LastLevelCache cache = cpu::last_level_cache();
  cpu::RunOptions options{best_instruction_set()};
  if (cache.bytes > 0) {
    options.tuning.last_level_bytes = cache.usable_bytes(threads);
  }
  return options;
}

// A Runtime of the engine's sweeps: this number of threads, and memory that is made once.
struct Runtime {
  int threads;
  std::vector<std::byte>& memory;

  template <typename Body>
  void parallel_for(int64_t size, int64_t grain, const Body& body) const {
    bench::parallel_for(threads, size, grain, body);
  }
  cpu::Memory allocate(int64_t bytes) const {
    memory.resize(std::max<size_t>(memory.size(), bytes));
    return {memory.data(), [](void*) {}};
  }
};

template <typename scalar_t, typename weight_t>
class TypedProblem : public Problem {
 public:
  explicit TypedProblem(const Case& benchmark_case)
      : Problem(benchmark_case, sizeof(scalar_t)),
        view_(benchmark_case.view),
        weight_(view_.channels),
        grad_weight_(view_.channels) {
    std::mt19937 random(11);
    for (int64_t i = 0; i < view_.numel(); ++i) {
      input()[i] = static_cast<scalar_t>(uniform(random));
      grad_output()[i] = static_cast<scalar_t>(uniform(random));
    }
    for (weight_t& slope : weight_) {
      slope = static_cast<weight_t>(uniform(random));
    }
    std::memset(result(), 0, bytes_);
  }

  void forward(int threads) override {
    const cpu::Operands<PreluForward, scalar_t> operands{{input()}, {result()}, {slopes()}};
    cpu::run(view_, options_of(threads), Runtime{threads, memory_}, cpu::Sweep(operands, NoStep()));
  }

  void backward(int threads) override {
    const cpu::Operands<PreluBackward, scalar_t> operands{
        {grad_output(), input()}, {result()}, {slopes()}};
    const StoreSums<scalar_t, 1> step{{{grad_weight_.data(), kComputeType}}};
    cpu::run(view_, options_of(threads), Runtime{threads, memory_}, cpu::Sweep(operands, step));
  }

  void check_kernels(int threads) override {
    std::memset(result(), 0xff, bytes_);
    forward(threads);
    check_map("forward", [&](int64_t i, float slope) {
      const float x = static_cast<float>(input()[i]);
      return x > 0 ? x : slope * x;
    });
    std::memset(result(), 0xff, bytes_);
    backward(threads);
    check_map("grad_input", [&](int64_t i, float slope) {
      const float g = static_cast<float>(grad_output()[i]);
      return static_cast<float>(input()[i]) > 0 ? g : slope * g;
    });
    check_grad_weight();
  }

 private:
  static float uniform(std::mt19937& random) {
    return static_cast<float>(static_cast<int32_t>(random())) * 0x1p-31f;
  }

  static constexpr bool kComputeType = std::is_same_v<weight_t, compute_type<scalar_t>>;
  ChannelInput<scalar_t> slopes() const { return {weight_.data(), kComputeType, 1}; }

  scalar_t* input() const { return input_.as<scalar_t>(); }
  scalar_t* grad_output() const { return grad_output_.as<scalar_t>(); }
  scalar_t* result() const { return result_.as<scalar_t>(); }

  // element(index, channel) for all, in memory's order.
  template <typename Element>
  void for_each(const Element& element) const {
    int64_t index = 0;
    for (int64_t row = 0; row < view_.outer; ++row) {
      for (int64_t c = 0; c < view_.channels; ++c) {
        for (int64_t k = 0; k < view_.inner; ++k) {
          element(index++, c);
        }
      }
    }
  }

  // One multiplication and one rounding: there is only one right answer, to the bit.
  template <typename Expected>
  void check_map(const char* what, const Expected& expected) const {
    for_each([&](int64_t i, int64_t channel) {
      const auto value = static_cast<scalar_t>(expected(i, static_cast<float>(weight_[channel])));
      if (std::memcmp(&value, &result()[i], sizeof(value)) != 0) {
        fail_at(what, i, static_cast<float>(value), static_cast<float>(result()[i]));
      }
    });
  }

  void check_grad_weight() const {
    std::vector<double> sums(view_.channels), magnitudes(view_.channels);
    for_each([&](int64_t i, int64_t channel) {
      const double x = static_cast<float>(input()[i]);
      const double term = x > 0 ? 0 : x * static_cast<float>(grad_output()[i]);
      sums[channel] += term;
      magnitudes[channel] += std::fabs(term);
    });
    const double rounding = sizeof(weight_t) == 2 ? 0x1p-8 : 0x1p-24;
    constexpr double kSmallestStep = 0x1p-24;  // of float16
    for (int64_t c = 0; c < view_.channels; ++c) {
      const double found = static_cast<float>(grad_weight_[c]);
      const double bound =
          16 * 0x1p-24 * magnitudes[c] + rounding * std::fabs(sums[c]) + kSmallestStep;
      if (!(std::fabs(found - sums[c]) <= bound)) {
        fail_at("grad_weight", c, sums[c], found);
      }
    }
  }

  [[noreturn]] void fail_at(const char* what, int64_t i, double expected, double found) const {
    fail(
        std::string(what) + "[" + std::to_string(i) + "] is " + std::to_string(found) + ", not " +
        std::to_string(expected));
  }

  const ChannelView view_;
  std::vector<weight_t> weight_;
  std::vector<weight_t> grad_weight_;
  std::vector<std::byte> memory_;  // of partial sums
};

template <typename scalar_t, typename weight_t>
std::unique_ptr<Problem> make_typed(const Case& benchmark_case) {
  return std::make_unique<TypedProblem<scalar_t, weight_t>>(benchmark_case);
}

struct Maker {
  std::string_view dtype;
  std::string_view weight_dtype;
  std::unique_ptr<Problem> (*make)(const Case&);
};

constexpr Maker kMakers[] = {
    {"float32", "float32", make_typed<float, float>},
    {"bfloat16", "bfloat16", make_typed<c10::BFloat16, c10::BFloat16>},
    {"bfloat16", "float32", make_typed<c10::BFloat16, float>},
    {"float16", "float16", make_typed<c10::Half, c10::Half>},
    {"float16", "float32", make_typed<c10::Half, float>},
};

}  // namespace

Problem::Problem(const Case& benchmark_case, size_t element_size)
    : title_(benchmark_case.title),
      element_size_(element_size),
      bytes_(benchmark_case.view.numel() * element_size),
      result_(bytes_, kResultOffset),
      // As for an operator: arguments lie where the caller has them, a result is a fresh
      // allocation.
      input_(bytes_, kInputOffset + (benchmark_case.misaligned ? element_size : 0)),
      grad_output_(bytes_, kGradOutputOffset + (benchmark_case.misaligned ? element_size : 0)) {}

void Problem::check(int threads) {
  check_kernels(threads);
  check_ceilings(threads);
}

// A pass that leaves something out would be a ceiling that nobody can reach.
void Problem::check_ceilings(int threads) {
  const auto* const result = result_.as<unsigned char>();
  const auto* const input = input_.as<unsigned char>();
  const auto* const grad_output = grad_output_.as<unsigned char>();
  for (const Ceiling& way : copies()) {
    std::memset(result_.as<void>(), 0xff, bytes_);
    copy(way.run, threads);
    if (std::memcmp(result, input, bytes_) != 0) {
      fail(std::string("the copy by ") + way.name + " is wrong");
    }
  }
  for (const Ceiling& way : streams()) {
    std::memset(result_.as<void>(), 0xff, bytes_);
    stream(way.run, threads);
    for (size_t i = 0; i < bytes_; ++i) {
      if (result[i] != (grad_output[i] ^ input[i])) {
        fail(std::string("the stream by ") + way.name + " is wrong");
      }
    }
  }
}

void Problem::fail(const std::string& what) const {
  throw std::runtime_error(title_ + ": " + what + "; nothing of this case was timed");
}

// A thread's share is a whole number of cache lines, and threads join in from the same size on as
// for the kernels.
void Problem::run(Pass pass, const std::array<const Buffer*, 2>& inputs, int threads) {
  const int64_t lines = ceil_div(bytes_, kCacheLine);
  const int64_t grain = cpu::kTuning.thread_elements * element_size_ / kCacheLine;
  parallel_for(threads, lines, grain, [&](int64_t first, int64_t last) {
    const size_t begin = first * kCacheLine;
    const size_t end = std::min(last * kCacheLine, bytes_);
    std::array<const void*, 2> in{};
    for (size_t i = 0; i < in.size(); ++i) {
      in[i] = inputs[i] == nullptr ? nullptr : inputs[i]->as<std::byte>() + begin;
    }
    pass(result_.as<std::byte>() + begin, in.data(), end - begin);
  });
}

std::unique_ptr<Problem> make_problem(const Case& benchmark_case) {
  for (const Maker& maker : kMakers) {
    if (maker.dtype == benchmark_case.dtype && maker.weight_dtype == benchmark_case.weight_dtype) {
      return maker.make(benchmark_case);
    }
  }
  throw std::runtime_error(benchmark_case.title + ": no kernels for this dtype");
}

const char* capability() {
  return cpu::name_of(best_instruction_set());
}

}  // namespace torch_ext::bench
