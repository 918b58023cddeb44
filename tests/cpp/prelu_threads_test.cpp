// Eight threads at once, on one module and on tensors of their own: every result has the bits that
// one thread alone gets. The thread sanitizer runs this with all rounds (`make tsan`).
#include <torch/csrc/autograd/autograd.h>
#include <torch/utils.h>
#include <torch_ext/nn.h>

#include <atomic>
#include <barrier>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "prelu_oracle.h"

namespace {

using namespace torch_ext::testing;

constexpr int kThreads = 8;

int rounds() {
  const char* wanted = std::getenv("TORCH_EXT_TEST_ROUNDS");
  return wanted == nullptr ? 100 : std::atoi(wanted);
}

struct Layout {
  std::vector<int64_t> shape;
  bool channels_last;
};
const Layout kLayouts[] = {{{2, 4, 5, 7}, false}, {{3, 4, 3, 3}, true}, {{33, 4}, false}};

struct Problem {
  Tensor input, grad_output;
};

// Values whose sums are rounded: another order would be other bits.
Problem problem(int seed) {
  const Layout& layout = kLayouts[seed % std::size(kLayouts)];
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  const auto values = [&] {
    const auto random = at::randn(layout.shape, generator);
    return layout.channels_last ? random.contiguous(at::MemoryFormat::ChannelsLast) : random;
  };
  return {values(), values()};
}

// Forward and backward as a training step does it, the gradients returned instead of added up.
Results step(const Problem& problem, torch_ext::nn::PReLU& module) {
  const auto input = problem.input.detach().requires_grad_();
  const auto output = module->forward(input);
  const auto gradients =
      torch::autograd::grad({output}, {input, module->weight}, {problem.grad_output});
  return {output.detach(), gradients[0], gradients[1]};
}

bool same_results(const Results& a, const Results& b) {
  return torch::equal(a.output, b.output) && torch::equal(a.grad_input, b.grad_input) &&
         torch::equal(a.grad_weight, b.grad_weight);
}

// Calls run(thread) in all threads, which start together.
template <typename Run>
void in_threads(const Run& run) {
  std::barrier start(kThreads);
  std::vector<std::jthread> threads;
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      start.arrive_and_wait();
      run(thread);
    });
  }
}

torch_ext::nn::PReLU module_of(int channels) {
  torch_ext::nn::PReLU module(torch::nn::PReLUOptions().num_parameters(channels));
  const torch::NoGradGuard no_grad;
  module->weight.copy_(slopes(channels));
  return module;
}

TEST(PreluThreadsTest, ASharedModuleGivesTheBitsOfASerialRun) {
  auto module = module_of(4);
  std::vector<Problem> problems;
  std::vector<Results> expected;
  for (int thread = 0; thread < kThreads; ++thread) {
    problems.push_back(problem(thread));
    expected.push_back(step(problems.back(), module));
    ASSERT_TRUE(both_branches(problems.back().input));
  }
  std::atomic<int> differences = 0;
  in_threads([&](int thread) {
    for (int round = 0; round < rounds(); ++round) {
      const int which = (thread + round) % kThreads;  // each tensor in every thread's hands
      differences += !same_results(step(problems[which], module), expected[which]);
    }
  });
  EXPECT_EQ(differences, 0);
}

TEST(PreluThreadsTest, TensorsAndModulesOfTheirOwnGiveTheBitsOfASerialRun) {
  std::vector<Results> expected;
  for (int thread = 0; thread < kThreads; ++thread) {
    auto module = module_of(4);
    expected.push_back(step(problem(thread), module));
  }
  std::atomic<int> differences = 0;
  in_threads([&](int thread) {
    auto module = module_of(4);
    const Problem own = problem(thread);
    for (int round = 0; round < rounds(); ++round) {
      differences += !same_results(step(own, module), expected[thread]);
    }
  });
  EXPECT_EQ(differences, 0);
}

// Gradients that threads add to the same parameter: exact in any order.
TEST(PreluThreadsTest, GradientsOfASharedModuleAddUp) {
  auto module = module_of(4);
  const auto input = integers({6, 4, 5}, 3).to(torch::kFloat);
  const auto once = oracle(torch::ones_like(input), input, module->weight).grad_weight;
  in_threads([&](int) {
    for (int round = 0; round < rounds(); ++round) {
      module->forward(input).sum().backward();
    }
  });
  const auto expected = (once * kThreads * rounds()).to(torch::kFloat);
  EXPECT_TRUE(same(module->weight.grad(), expected));
}

}  // namespace
