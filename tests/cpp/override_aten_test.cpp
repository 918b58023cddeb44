// torch_ext::OverrideAten, as a LibTorch program uses it.
#include <ATen/record_function.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/nn.h>
#include <torch/script.h>
#include <torch_ext/override_aten.h>
#include <torch_ext/prelu.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "prelu_oracle.h"

namespace {

using namespace torch_ext::testing;

constexpr const char* kOurs = "TorchExtPreluBackward";
constexpr const char* kStock = "PreluKernelBackward0";

// Whether `call` runs the operator of this name, at any depth, in this thread.
template <typename Call>
bool runs(const char* name, const Call& call) {
  static thread_local std::vector<std::string> seen;
  seen.clear();
  const auto note = [](const at::RecordFunction& function) -> std::unique_ptr<at::ObserverContext> {
    seen.emplace_back(function.name());
    return nullptr;
  };
  const auto handle = at::addThreadLocalCallback(at::RecordFunctionCallback(note));
  call();
  at::removeCallback(handle);
  return std::find(seen.begin(), seen.end(), name) != seen.end();
}

class OverrideAtenTest : public ::testing::Test {
 protected:
  void SetUp() override {
    {
      const torch_ext::OverrideAten first;
    }  // of the process, which must not meet other threads
    ASSERT_EQ(node(), kStock);
  }
  void TearDown() override { ASSERT_EQ(node(), kStock); }

  // The name of the graph node that at::prelu makes: whose kernel it ran on.
  std::string node() const { return at::prelu(input_, weight_).grad_fn()->name(); }

  Tensor input_ = integers({4, 3, 6}, 4).requires_grad_();
  Tensor weight_ = slopes(3).requires_grad_();
  Tensor grad_output_ = integers({4, 3, 6}, 3);
  Results expected_ = oracle(grad_output_, input_, weight_);

  void expect_right(const Tensor& output) {
    ASSERT_TRUE(both_branches(input_));
    EXPECT_TRUE(same(output, expected_.output));
    const auto gradients = torch::autograd::grad({output}, {input_, weight_}, {grad_output_});
    EXPECT_TRUE(same(gradients[0], expected_.grad_input));
    EXPECT_TRUE(same(gradients[1], expected_.grad_weight));
  }
};

TEST_F(OverrideAtenTest, AtPreluRunsOnOurKernelsWithItsDerivatives) {
  const torch_ext::OverrideAten guard;
  EXPECT_EQ(node(), kOurs);
  expect_right(at::prelu(input_, weight_));
  expect_right(input_.prelu(weight_));
}

TEST_F(OverrideAtenTest, AModuleOfTorchNnDoesToo) {
  torch::nn::PReLU module(torch::nn::PReLUOptions().num_parameters(3));
  module->weight = weight_;
  const torch_ext::OverrideAten guard;
  const auto output = module(input_);
  EXPECT_EQ(output.grad_fn()->name(), kOurs);
  expect_right(output);
}

TEST_F(OverrideAtenTest, AScriptModuleDoesTooAndIsNotChanged) {
  torch::jit::Module module("prelu");
  module.register_parameter("weight", weight_, /*is_buffer=*/false);
  module.define("def forward(self, input):\n    return torch.prelu(input, self.weight)\n");
  const auto run = [&] { return module.forward({input_}).toTensor(); };
  for (int round = 0; round < 3; ++round) {  // the interpreter may change after its first runs
    {
      const torch_ext::OverrideAten guard;
      EXPECT_EQ(run().grad_fn()->name(), kOurs);
      expect_right(run());
    }
    EXPECT_EQ(run().grad_fn()->name(), kStock);
  }
}

TEST_F(OverrideAtenTest, InferenceTensorsReachOurKernel) {
  const c10::InferenceMode inference;
  const auto input = input_.detach().clone(), weight = weight_.detach().clone();
  ASSERT_TRUE(input.is_inference());
  const auto compute = [&] { EXPECT_TRUE(same(at::prelu(input, weight), expected_.output)); };
  EXPECT_FALSE(runs("torch_ext::prelu", compute));
  {
    const torch_ext::OverrideAten guard;
    EXPECT_TRUE(runs("torch_ext::prelu", compute));
    EXPECT_FALSE(runs("aten::_prelu_kernel", compute));
  }
  EXPECT_TRUE(runs("aten::_prelu_kernel", compute));
}

TEST_F(OverrideAtenTest, ArgumentRulesAreStocksAndOurOwnOperatorKeepsItsOwn) {
  const auto half = input_.detach().to(torch::kHalf);
  const auto slope = weight_.detach().to(torch::kFloat);
  const auto stock = error_of([&] { at::prelu(half, slope); });
  const torch_ext::OverrideAten guard;
  EXPECT_TRUE(contains(stock, "prelu: Type promoting not supported. Got Half and Float"));
  EXPECT_EQ(error_of([&] { at::prelu(half, slope); }), stock);
  EXPECT_TRUE(same(torch_ext::prelu(half, slope), expected_.output.to(torch::kHalf)));
}

TEST_F(OverrideAtenTest, AnUndefinedTensorRaisesWhatItDid) {
  const auto stock = error_of([&] { at::prelu(input_, Tensor()); });
  const torch_ext::OverrideAten guard;
  EXPECT_FALSE(stock.empty());
  EXPECT_EQ(error_of([&] { at::prelu(input_, Tensor()); }), stock);
}

TEST_F(OverrideAtenTest, GuardsNestAndOverlap) {
  std::optional<torch_ext::OverrideAten> first(std::in_place), second(std::in_place);
  {
    const torch_ext::OverrideAten third;
    EXPECT_EQ(node(), kOurs);
  }
  first.reset();
  EXPECT_EQ(node(), kOurs);
  second.reset();
  EXPECT_EQ(node(), kStock);
}

TEST_F(OverrideAtenTest, AnExceptionEndsIt) {
  const auto fail = [] {
    const torch_ext::OverrideAten guard;
    throw std::runtime_error("on purpose");
  };
  EXPECT_THROW(fail(), std::runtime_error);
  EXPECT_EQ(node(), kStock);
}

TEST_F(OverrideAtenTest, ThreadsThatEnterLeaveAndComputeAtOnceGetRightResults) {
  const auto input = input_.detach();
  const auto weight = weight_.detach().clone().requires_grad_();
  std::atomic<int> wrong{0}, ours{0}, stock{0};
  const auto compute = [&](bool must_be_ours) {
    const auto output = at::prelu(input, weight);
    const bool is_ours = output.grad_fn()->name() == kOurs;
    ++(is_ours ? ours : stock);
    if ((must_be_ours && !is_ours) || !torch::equal(output.detach(), expected_.output)) {
      ++wrong;
    }
  };
  std::vector<std::thread> threads;
  for (int index = 0; index < 8; ++index) {
    threads.emplace_back([&, index] {
      for (int round = 0; round < 2000; ++round) {
        if (index % 2 == 0) {
          const torch_ext::OverrideAten guard;
          compute(/*must_be_ours=*/true);
        } else {
          compute(/*must_be_ours=*/false);
        }
      }
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  compute(/*must_be_ours=*/false);
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(ours, 0);
  EXPECT_GT(stock, 0);
}

}  // namespace
