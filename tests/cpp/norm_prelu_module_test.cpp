// torch_ext::nn::NormPReLU against the two modules of torch::nn that it joins.
#include <torch/torch.h>
#include <torch_ext/nn.h>

#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "prelu_oracle.h"

namespace {

using namespace torch_ext::testing;

constexpr int64_t kChannels = 3;

torch::nn::PReLU three_slopes() {
  torch::nn::PReLU prelu(torch::nn::PReLUOptions().num_parameters(kChannels));
  prelu->weight.data().copy_(slopes(kChannels));
  return prelu;
}

// A norm of torch::nn, followed by slopes, in double and with parameters of its own.
template <typename Norm>
struct Pair {
  Norm norm;
  torch::nn::PReLU prelu = three_slopes();
  torch_ext::nn::NormPReLU joined;

  explicit Pair(const Norm& its_norm) : norm(its_norm), joined(norm, prelu) {
    torch::manual_seed(1);
    for (Tensor& parameter : norm->parameters()) {
      parameter.data().uniform_(0.5, 1.5);
    }
    joined->to(torch::kDouble);
  }
};

template <typename Norm>
Norm copy_of(const Norm& module) {
  return Norm(std::dynamic_pointer_cast<typename Norm::ContainedType>(module->clone()));
}

bool near(const Tensor& a, const Tensor& b) {
  return torch::allclose(a, b, 1e-10, 1e-10);
}

// Two training steps and a step in eval mode: outputs, gradients, buffers.
template <typename Norm, typename Options>
void expect_what_the_pair_does(const Options& options, at::IntArrayRef shape) {
  SCOPED_TRACE(testing::Message() << Norm(options) << " of " << shape);
  const Pair<Norm> ours{Norm(options)};
  Norm norm = copy_of(ours.norm);
  torch::nn::PReLU prelu = copy_of(ours.prelu);
  torch_ext::nn::NormPReLU joined = ours.joined;
  for (const bool training : {true, true, false}) {
    joined->train(training);
    norm->train(training);
    const Tensor input = (torch::randn(shape, torch::kDouble) * 2 + 1).requires_grad_();
    const Tensor input_of_pair = input.detach().clone().requires_grad_();
    const Tensor output = joined(input), output_of_pair = prelu(norm(input_of_pair));
    EXPECT_TRUE(near(output, output_of_pair));
    output.square().sum().backward();
    output_of_pair.square().sum().backward();
    EXPECT_TRUE(near(input.grad(), input_of_pair.grad()));
    EXPECT_TRUE(near(ours.prelu->weight.grad(), prelu->weight.grad()));
    EXPECT_GT(prelu->weight.grad().abs().max().template item<double>(), 0);
  }
  for (size_t i = 0; i < norm->parameters().size(); ++i) {
    EXPECT_TRUE(near(ours.norm->parameters()[i].grad(), norm->parameters()[i].grad()));
  }
  ASSERT_EQ(ours.norm->buffers().size(), norm->buffers().size());
  for (size_t i = 0; i < norm->buffers().size(); ++i) {
    EXPECT_TRUE(near(ours.norm->buffers()[i], norm->buffers()[i]));
  }
}

TEST(NormPReLUModuleTest, BatchNorms) {
  using Options = torch::nn::BatchNormOptions;
  const Options usual(kChannels);
  expect_what_the_pair_does<torch::nn::BatchNorm1d>(usual, {8, kChannels});
  expect_what_the_pair_does<torch::nn::BatchNorm1d>(usual, {8, kChannels, 5});
  expect_what_the_pair_does<torch::nn::BatchNorm2d>(usual, {2, kChannels, 5, 4});
  expect_what_the_pair_does<torch::nn::BatchNorm3d>(usual, {2, kChannels, 2, 3, 4});
  const Options averaged = Options(kChannels).momentum(std::nullopt).eps(0.1);
  expect_what_the_pair_does<torch::nn::BatchNorm2d>(averaged, {2, kChannels, 5, 4});
  const Options plain = Options(kChannels).affine(false).track_running_stats(false);
  expect_what_the_pair_does<torch::nn::BatchNorm2d>(plain, {2, kChannels, 5, 4});
}

TEST(NormPReLUModuleTest, InstanceNorms) {
  using Options = torch::nn::InstanceNormOptions;
  const Options usual(kChannels);
  const Options complete = Options(kChannels).affine(true).track_running_stats(true).momentum(0.3);
  expect_what_the_pair_does<torch::nn::InstanceNorm1d>(usual, {4, kChannels, 5});
  expect_what_the_pair_does<torch::nn::InstanceNorm2d>(complete, {4, kChannels, 5, 4});
  expect_what_the_pair_does<torch::nn::InstanceNorm3d>(complete, {4, kChannels, 2, 3, 4});
}

TEST(NormPReLUModuleTest, WithoutABatchItIsTheTwoModules) {
  torch::nn::InstanceNorm2d norm(kChannels);
  torch_ext::nn::PReLU prelu;  // (as for torch::nn::PReLU, channels would be dimension 1)
  const Tensor input = torch::randn({kChannels, 5, 4});
  torch_ext::nn::NormPReLU joined(norm, prelu);
  EXPECT_TRUE(same(joined(input), prelu->forward(norm->forward(input))));
}

TEST(NormPReLUModuleTest, RunsAsOneOperatorWithEitherPReLU) {
  const Tensor input = torch::randn({2, kChannels, 4, 4});
  torch_ext::nn::NormPReLU with_ours(
      torch::nn::BatchNorm2d(kChannels),
      torch_ext::nn::PReLU(torch::nn::PReLUOptions().num_parameters(kChannels)));
  torch_ext::nn::NormPReLU with_torchs(
      torch::nn::BatchNorm2d(kChannels),
      torch::nn::PReLU(torch::nn::PReLUOptions().num_parameters(kChannels)));
  EXPECT_TRUE(same(with_ours(input), with_torchs(input)));
  EXPECT_TRUE(contains(with_ours(input).grad_fn()->name(), "Norm"));
  EXPECT_FALSE(contains(with_ours(input).grad_fn()->name(), "BatchNorm"));
}

TEST(NormPReLUModuleTest, ErrorsAreThoseOfTheNorm) {
  torch_ext::nn::NormPReLU module(torch::nn::BatchNorm2d(kChannels), three_slopes());
  EXPECT_TRUE(contains(
      error_of([&] { module(torch::ones({2, kChannels, 4})); }),
      "expected 4D input (got 3D input)"));
  EXPECT_TRUE(contains(
      error_of([&] { module(torch::ones({2, kChannels + 1, 4, 4})); }),
      "running_mean should contain 4 elements not 3"));
}

TEST(NormPReLUModuleTest, IsAModuleWithTwoChildren) {
  const Pair<torch::nn::BatchNorm2d> pair{torch::nn::BatchNorm2d(kChannels)};
  EXPECT_EQ(
      pair.joined->named_parameters().keys(),
      (std::vector<std::string>{"norm.weight", "norm.bias", "prelu.weight"}));
  EXPECT_TRUE(pair.joined->parameters()[2].is_same(pair.prelu->weight));
  std::ostringstream text;
  text << pair.joined;
  EXPECT_EQ(text.str().find("torch_ext::nn::NormPReLU(\n  (norm): torch::nn::BatchNorm2d(3"), 0);
}

TEST(NormPReLUModuleTest, ACheckpointGoesToTheTwoModulesAndBack) {
  const Pair<torch::nn::BatchNorm2d> pair{torch::nn::BatchNorm2d(kChannels)};
  torch_ext::nn::NormPReLU module = pair.joined;
  const Tensor input = torch::randn({2, kChannels, 4, 4}, torch::kDouble);
  module(input);
  torch::nn::Sequential two;
  two->push_back("norm", torch::nn::BatchNorm2d(kChannels));
  two->push_back("prelu", torch::nn::PReLU(torch::nn::PReLUOptions().num_parameters(kChannels)));
  two->to(torch::kDouble);
  std::stringstream file;
  torch::save(module, file);
  torch::load(two, file);
  module->eval();
  two->eval();
  EXPECT_TRUE(near(module(input), two->forward(input)));
}

TEST(NormPReLUModuleTest, ACloneInANetworkHasModulesOfItsOwn) {
  const Pair<torch::nn::BatchNorm2d> pair{torch::nn::BatchNorm2d(kChannels)};
  torch::nn::Sequential network(pair.joined);
  const Tensor input = torch::randn({2, kChannels, 4, 4}, torch::kDouble);
  const auto clone = std::dynamic_pointer_cast<torch::nn::SequentialImpl>(network->clone());
  ASSERT_NE(clone, nullptr);
  const Tensor before = clone->forward(input).clone();
  EXPECT_TRUE(same(before, network->forward(input)));
  for (Tensor& parameter : network->parameters()) {
    parameter.data().zero_();
  }
  EXPECT_TRUE(same(clone->forward(input), before));
  EXPECT_FALSE(torch::allclose(network->forward(input), before));
}

}  // namespace
