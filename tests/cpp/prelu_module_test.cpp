// torch_ext::nn::PReLU, in a network, and its checkpoints to and from torch::nn::PReLU.
#include <torch/torch.h>
#include <torch_ext/nn.h>

#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "prelu_oracle.h"

namespace {

using namespace torch_ext::testing;

torch::nn::PReLUOptions three_slopes() {
  return torch::nn::PReLUOptions().num_parameters(3).init(-0.5);
}

// Through torch::save and torch::load, as a checkpoint would.
template <typename From, typename To>
void hand_over(const From& from, To& to) {
  std::stringstream file;
  torch::save(from, file);
  torch::load(to, file);
}

TEST(PReLUModuleTest, StartsWithOneSlopeOfAQuarterByDefault) {
  const torch_ext::nn::PReLU module;
  ASSERT_EQ(module->named_parameters().keys(), std::vector<std::string>{"weight"});
  EXPECT_TRUE(same(module->weight, torch::tensor({0.25F})));
  EXPECT_TRUE(module->weight.requires_grad());
}

TEST(PReLUModuleTest, TakesNumberAndStartOfSlopesFromItsOptions) {
  const torch_ext::nn::PReLU module(three_slopes());
  EXPECT_TRUE(same(module->weight, torch::full({3}, -0.5F)));
}

TEST(PReLUModuleTest, RunsTheOperatorAndLearnsItsSlope) {
  torch::manual_seed(0);
  torch_ext::nn::PReLU module(three_slopes());
  const auto input = torch::randn({8, 3});
  ASSERT_TRUE(both_branches(input));
  const auto output = module->forward(input);
  EXPECT_TRUE(same(output, torch_ext::prelu(input, module->weight)));
  EXPECT_TRUE(same(module(input), output));
  output.sum().backward();
  const auto expected = oracle(torch::ones_like(input), input, module->weight);
  EXPECT_TRUE(torch::allclose(module->weight.grad(), expected.grad_weight.to(torch::kFloat)));
}

TEST(PReLUModuleTest, PrintsLikeTheModulesOfTorch) {
  std::ostringstream text;
  text << torch_ext::nn::PReLU(torch::nn::PReLUOptions().num_parameters(42));
  EXPECT_EQ(text.str(), "torch_ext::nn::PReLU(num_parameters=42)");
}

TEST(PReLUModuleTest, AStockCheckpointLoads) {
  torch::nn::PReLU stock(torch::nn::PReLUOptions().num_parameters(3));
  torch_ext::nn::PReLU module(three_slopes());
  hand_over(stock, module);
  EXPECT_TRUE(same(module->weight, torch::full({3}, 0.25F)));
}

TEST(PReLUModuleTest, StockLoadsACheckpoint) {
  torch_ext::nn::PReLU module(three_slopes());
  torch::nn::PReLU stock(torch::nn::PReLUOptions().num_parameters(3));
  hand_over(module, stock);
  EXPECT_TRUE(same(stock->weight, torch::full({3}, -0.5F)));
}

TEST(PReLUModuleTest, AWholeNetworksCheckpointGoesBothWays) {
  torch::manual_seed(0);
  torch::nn::Sequential network(
      torch::nn::Conv2d(2, 3, 3), torch_ext::nn::PReLU(three_slopes()), torch::nn::Flatten());
  torch::nn::Sequential stock(
      torch::nn::Conv2d(2, 3, 3), torch::nn::PReLU(three_slopes()), torch::nn::Flatten());
  const auto input = torch::randn({2, 2, 6, 6});
  ASSERT_FALSE(torch::equal(network->forward(input), stock->forward(input)));
  hand_over(network, stock);
  EXPECT_TRUE(same(network->forward(input), stock->forward(input)));
  stock[1]->parameters()[0].data().fill_(2);
  hand_over(stock, network);
  EXPECT_TRUE(same(network->forward(input), stock->forward(input)));
}

TEST(PReLUModuleTest, ACloneHasSlopesOfItsOwn) {
  torch_ext::nn::PReLU module(three_slopes());
  module->weight.data().fill_(0.75);
  const auto clone = std::dynamic_pointer_cast<torch_ext::nn::PReLUImpl>(module->clone());
  ASSERT_NE(clone, nullptr);
  EXPECT_EQ(clone->options.num_parameters(), 3);
  module->weight.data().fill_(2);
  EXPECT_TRUE(same(clone->weight, torch::full({3}, 0.75F)));
  EXPECT_TRUE(clone->parameters()[0].is_same(clone->weight));
}

TEST(PReLUModuleTest, MovesToAnotherDtypeWithItsNetwork) {
  torch::nn::Sequential network(torch::nn::Linear(4, 3), torch_ext::nn::PReLU(three_slopes()));
  network->to(torch::kDouble);
  EXPECT_EQ(network->forward(torch::randn({2, 4}, torch::kDouble)).scalar_type(), torch::kDouble);
}

TEST(PReLUModuleTest, ANetworkTrainsAsWithTheModuleOfTorch) {
  torch::manual_seed(0);
  torch::nn::Sequential network(
      torch::nn::Conv2d(2, 3, 3), torch_ext::nn::PReLU(three_slopes()), torch::nn::Flatten(),
      torch::nn::Linear(48, 1));
  torch::nn::Sequential stock(
      torch::nn::Conv2d(2, 3, 3), torch::nn::PReLU(three_slopes()), torch::nn::Flatten(),
      torch::nn::Linear(48, 1));
  network->to(torch::kDouble);
  stock->to(torch::kDouble);
  hand_over(network, stock);
  const auto input = torch::randn({4, 2, 6, 6}, torch::kDouble);
  ASSERT_TRUE(both_branches(network[0]->as<torch::nn::Conv2d>()->forward(input)));

  const auto train = [&](torch::nn::Sequential& model) {
    torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
    for (int step = 0; step < 5; ++step) {
      optimizer.zero_grad();
      model->forward(input).square().mean().backward();
      optimizer.step();
    }
    return model->parameters();
  };
  const auto slopes_before = network->parameters()[2].detach().clone();
  const auto actual = train(network);
  const auto expected = train(stock);
  EXPECT_FALSE(torch::allclose(actual[2], slopes_before, 1e-3));
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_TRUE(torch::allclose(actual[i], expected[i], 1e-12, 1e-12)) << "parameter " << i;
  }
}

}  // namespace
