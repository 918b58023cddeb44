// The modes of LibTorch around the operator: autocast, no_grad, inference mode, threads.
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/nn.h>
#include <torch_ext/nn.h>

#include <atomic>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "prelu_oracle.h"

namespace {

using namespace torch_ext::testing;

// ---- Autocast ---------------------------------------------------------------------------------

// What Python's torch.autocast("cpu", dtype) does.
class Autocast {
 public:
  explicit Autocast(at::ScalarType dtype, bool enabled = true)
      : was_enabled_(at::autocast::is_autocast_enabled(at::kCPU)),
        old_dtype_(at::autocast::get_autocast_dtype(at::kCPU)) {
    at::autocast::set_autocast_enabled(at::kCPU, enabled);
    at::autocast::set_autocast_dtype(at::kCPU, dtype);
    at::autocast::increment_nesting();
  }
  ~Autocast() {
    if (at::autocast::decrement_nesting() == 0) {
      at::autocast::clear_cache();
    }
    at::autocast::set_autocast_dtype(at::kCPU, old_dtype_);
    at::autocast::set_autocast_enabled(at::kCPU, was_enabled_);
  }
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;

 private:
  bool was_enabled_;
  at::ScalarType old_dtype_;
};

class PreluAutocastTest : public ::testing::TestWithParam<at::ScalarType> {};

TEST_P(PreluAutocastTest, TheInputIsCastAndAFloat32SlopeIsNot) {
  torch::manual_seed(0);
  const auto input = torch::randn({4, 3, 5}).requires_grad_();
  const auto weight = torch::tensor({0.1F, -0.3F, 1.7F}).requires_grad_();  // not 16-bit numbers
  const auto grad_output = torch::randn({4, 3, 5}).to(GetParam());
  ASSERT_TRUE(both_branches(input));
  Tensor output;
  {
    const Autocast autocast(GetParam());
    output = torch_ext::prelu(input, weight);
  }
  const auto cast = input.detach().to(GetParam());
  EXPECT_EQ(output.scalar_type(), GetParam());
  EXPECT_TRUE(same(output, torch_ext::prelu(cast, weight)));

  output.backward(grad_output);
  const auto [grad_input, grad_weight] =
      torch_ext::prelu_backward(grad_output, cast, weight.detach(), {true, true});
  EXPECT_TRUE(same(input.grad(), grad_input.to(torch::kFloat)));
  EXPECT_TRUE(same(weight.grad(), grad_weight));
}

TEST_P(PreluAutocastTest, OutputDtypesAreThoseOfStock) {
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kHalf, torch::kBFloat16}) {
    const auto input = torch::randn({2, 3}).to(dtype);
    const auto weight = torch::ones({3}).to(dtype);
    const Autocast autocast(GetParam());
    EXPECT_EQ(
        torch_ext::prelu(input, weight).scalar_type(), at::prelu(input, weight).scalar_type());
  }
}

TEST_P(PreluAutocastTest, ANetworkTrainsInMixedPrecision) {
  torch::manual_seed(0);
  torch::nn::Sequential network(
      torch::nn::Linear(8, 6), torch_ext::nn::PReLU(torch::nn::PReLUOptions().num_parameters(6)),
      torch::nn::Linear(6, 1));
  {
    const Autocast autocast(GetParam());
    const auto output = network->forward(torch::randn({16, 8}));
    EXPECT_EQ(output.scalar_type(), GetParam());
    output.to(torch::kFloat).square().mean().backward();
  }
  for (const auto& parameter : network->parameters()) {
    ASSERT_TRUE(parameter.grad().defined());
    EXPECT_EQ(parameter.grad().scalar_type(), torch::kFloat);
    EXPECT_GT(parameter.grad().norm().item<float>(), 0);
  }
}

TEST_P(PreluAutocastTest, ItIsOffWhereItIsSwitchedOff) {
  const auto input = torch::randn({2, 3});
  const auto weight = torch::ones({3});
  const Autocast autocast(GetParam());
  ASSERT_EQ(torch_ext::prelu(input, weight).scalar_type(), GetParam());
  {
    const Autocast off(GetParam(), /*enabled=*/false);
    EXPECT_EQ(torch_ext::prelu(input, weight).scalar_type(), torch::kFloat);
  }
  EXPECT_EQ(torch_ext::prelu(input, weight).scalar_type(), GetParam());
  std::thread([&] {  // a mode of one thread
    EXPECT_EQ(torch_ext::prelu(input, weight).scalar_type(), torch::kFloat);
  })
      .join();
}

INSTANTIATE_TEST_SUITE_P(
    To, PreluAutocastTest, ::testing::Values(at::kBFloat16, at::kHalf), [](const auto& info) {
      return at::toString(info.param);
    });

// ---- Without gradients ------------------------------------------------------------------------

TEST(PreluNoGradTest, NothingIsRecordedWhereNothingRequiresGradients) {
  const auto weight = torch::randn({3}).requires_grad_();
  const auto input = torch::randn({2, 3});
  EXPECT_TRUE(torch_ext::prelu(input, weight).requires_grad());
  EXPECT_FALSE(torch_ext::prelu(input, weight.detach()).requires_grad());
  const torch::NoGradGuard no_grad;
  const auto output = torch_ext::prelu(input, weight);
  EXPECT_FALSE(output.requires_grad());
  EXPECT_EQ(output.grad_fn(), nullptr);
  const torch::AutoGradMode grad(true);
  EXPECT_TRUE(torch_ext::prelu(input, weight).requires_grad());
}

TEST(PreluInferenceModeTest, ResultsAreTheSameAndAreInferenceTensors) {
  torch::manual_seed(0);
  const auto input = torch::randn({4, 3, 5});
  const auto weight = torch::tensor({0.1F, -0.3F, 1.7F}).requires_grad_();
  ASSERT_TRUE(both_branches(input));
  const auto expected = torch_ext::prelu(input, weight).detach();
  const auto [grad_input, grad_weight] =
      torch_ext::prelu_backward(input, input, weight.detach(), {true, true});

  const c10::InferenceMode inference;
  const auto output = torch_ext::prelu(input, weight);
  EXPECT_TRUE(output.is_inference());
  EXPECT_FALSE(output.requires_grad());
  EXPECT_TRUE(same(output, expected));
  const auto gradients = torch_ext::prelu_backward(input, input, weight, {true, true});
  EXPECT_TRUE(same(std::get<0>(gradients), grad_input));
  EXPECT_TRUE(same(std::get<1>(gradients), grad_weight));
}

TEST(PreluInferenceModeTest, ItsTensorsCannotBeSavedForBackwardButCanBeUsed) {
  Tensor made_in_inference;
  {
    const c10::InferenceMode inference;
    made_in_inference = torch::randn({2, 3});
  }
  const auto weight = torch::ones({3}).requires_grad_();
  EXPECT_TRUE(contains(
      error_of([&] { torch_ext::prelu(made_in_inference, weight); }),
      "Inference tensors cannot be saved for backward"));
  EXPECT_FALSE(torch_ext::prelu(made_in_inference, weight.detach()).requires_grad());
}

TEST(PreluInferenceModeTest, ItIsAModeOfOneThread) {
  const auto input = torch::randn({2, 3});
  const auto weight = torch::ones({3}).requires_grad_();
  const c10::InferenceMode inference;
  std::thread([&] {
    EXPECT_FALSE(torch_ext::prelu(input, weight).is_inference());
    torch_ext::prelu(input, weight).sum().backward();
  }).join();
  EXPECT_TRUE(weight.grad().defined());
}

// ---- Threads ----------------------------------------------------------------------------------

constexpr int kThreads = 8;
constexpr int kRounds = 20;

// Calls `work(index)` on many threads at once, all starting together.
template <typename Work>
void on_many_threads(const Work& work) {
  std::vector<std::thread> threads;
  std::atomic<int> waiting = kThreads;
  for (int index = 0; index < kThreads; ++index) {
    threads.emplace_back([&, index] {
      for (--waiting; waiting > 0;) {
        std::this_thread::yield();
      }
      work(index);
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
}

struct Step {
  Tensor input, grad_output;
  std::vector<Tensor> results;  // output, grad_input, grad_weight

  std::vector<Tensor> run(torch_ext::nn::PReLU& module) const {
    const auto leaf = input.detach().requires_grad_();
    const auto output = module(leaf);
    auto gradients = torch::autograd::grad({output}, {leaf, module->weight}, {grad_output});
    return {output.detach(), gradients[0], gradients[1]};
  }
};

// First of all, so that the operator's first calls are among those that race.
TEST(PreluThreadsTest, ManyThreadsShareAModuleAndGetTheBitsOfOne) {
  torch::manual_seed(0);
  torch_ext::nn::PReLU module(torch::nn::PReLUOptions().num_parameters(24));
  std::vector<Step> steps;
  for (int index = 0; index < kThreads; ++index) {  // some split over threads inside, some not
    const at::DimVector shape{4, 24, 8 + 16 * index, 9};
    steps.push_back({torch::randn(shape), torch::randn(shape), {}});
    ASSERT_TRUE(both_branches(steps.back().input));
  }
  std::vector<std::vector<std::vector<Tensor>>> results(kThreads);
  on_many_threads([&](int index) {
    for (int round = 0; round < kRounds; ++round) {
      results[index].push_back(steps[index].run(module));
    }
  });
  for (int index = 0; index < kThreads; ++index) {
    const auto expected = steps[index].run(module);
    for (const auto& round : results[index]) {
      for (size_t i = 0; i < expected.size(); ++i) {
        ASSERT_TRUE(torch::equal(round[i], expected[i])) << "thread " << index << " result " << i;
      }
    }
  }
}

TEST(PreluThreadsTest, ManyThreadsDifferentiateOneGraph) {
  torch::manual_seed(0);
  const auto input = integers({4, 24, 33}, 4).to(torch::kFloat).requires_grad_();
  const auto weight = slopes(24).to(torch::kFloat).requires_grad_();
  const auto output = torch_ext::prelu(input, weight);
  const auto grad_output = integers({4, 24, 33}, 3).flip(0).to(torch::kFloat);
  const auto expected = oracle(grad_output, input, weight);
  std::vector<int> wrong(kThreads);
  on_many_threads([&](int index) {
    for (int round = 0; round < kRounds; ++round) {
      const auto gradients =
          torch::autograd::grad({output}, {input, weight}, {grad_output}, /*retain_graph=*/true);
      wrong[index] += !torch::equal(gradients[0], expected.grad_input.to(torch::kFloat));
      wrong[index] += !torch::equal(gradients[1], expected.grad_weight.to(torch::kFloat));
    }
  });
  EXPECT_EQ(wrong, std::vector<int>(kThreads));
}

}  // namespace
