// Autograd from C++: which gradients, how often, hooks, what is saved and freed; second derivatives
// and forward mode against their formulas.
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/csrc/autograd/function.h>
#include <torch_ext/prelu.h>

#include <array>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "prelu_oracle.h"

namespace {

using namespace torch_ext::testing;

Tensor random_leaf(at::IntArrayRef shape) {
  return torch::randn(shape, torch::kDouble).requires_grad_();
}

Tensor integer_leaf(at::IntArrayRef shape, int64_t largest = 4) {
  return integers(shape, largest).requires_grad_();
}

// A slope for every channel, seen from a (N, C, S) tensor.
Tensor per_channel(const Tensor& weight) {
  return weight.view({1, -1, 1});
}

// PReLU from plain operators, whose derivatives of any order are PyTorch's own.
Tensor composed_prelu(const Tensor& input, const Tensor& weight) {
  return torch::where(input > 0, input, per_channel(weight) * input);
}

// ---- Which gradients --------------------------------------------------------------------------

// Whether input and weight require gradients.
class PreluNeedsGradTest : public ::testing::TestWithParam<std::tuple<bool, bool>> {};

TEST_P(PreluNeedsGradTest, ExactlyTheGradientsThatAreRequiredAreComputed) {
  const auto [input_needs, weight_needs] = GetParam();
  torch::manual_seed(0);
  const auto input = integers({4, 3, 5}, 4).requires_grad_(input_needs);
  const auto weight = slopes(3).requires_grad_(weight_needs);
  const auto grad_output = integers({4, 3, 5}, 3).flip(0);
  ASSERT_TRUE(both_branches(input));

  const auto output = torch_ext::prelu(input, weight);
  ASSERT_EQ(output.requires_grad(), input_needs || weight_needs);
  if (output.requires_grad()) {
    output.backward(grad_output);
  }
  const auto expected = oracle(grad_output, input, weight);
  ASSERT_EQ(input.grad().defined(), input_needs);
  ASSERT_EQ(weight.grad().defined(), weight_needs);
  if (input_needs) {
    EXPECT_TRUE(same(input.grad(), expected.grad_input));
  }
  if (weight_needs) {
    EXPECT_TRUE(same(weight.grad(), expected.grad_weight));
  }
}

std::string needs_name(const ::testing::TestParamInfo<std::tuple<bool, bool>>& info) {
  const auto [input, weight] = info.param;
  return std::string(input ? "Input" : "NoInput") + (weight ? "AndWeight" : "NoWeight");
}

INSTANTIATE_TEST_SUITE_P(
    All, PreluNeedsGradTest, ::testing::Combine(::testing::Bool(), ::testing::Bool()), needs_name);

TEST(PreluAutogradTest, GradientsOfALaterLayerReachAnEarlierOne) {
  torch::manual_seed(0);
  const auto input = integer_leaf({4, 3, 5});
  const auto first = slopes(3).requires_grad_();
  const auto second = slopes(3).flip(0).requires_grad_();
  const auto middle = torch_ext::prelu(input, first);
  torch_ext::prelu(middle, second).sum().backward();

  const auto later = oracle(torch::ones_like(middle), middle, second);
  const auto earlier = oracle(later.grad_input, input, first);
  EXPECT_GT(earlier.grad_weight.norm().item<double>(), 0);
  EXPECT_TRUE(same(second.grad(), later.grad_weight));
  EXPECT_TRUE(same(first.grad(), earlier.grad_weight));
  EXPECT_TRUE(same(input.grad(), earlier.grad_input));
}

TEST(PreluAutogradTest, OneTensorMayBeInputAndSlope) {
  const auto tensor = torch::tensor({-3.0}).requires_grad_();
  torch_ext::prelu(tensor, tensor).backward();  // x * x at x <= 0
  EXPECT_TRUE(same(tensor.grad(), torch::tensor({-6.0})));
}

// ---- How often, and what is kept for it -------------------------------------------------------

TEST(PreluAutogradTest, ASecondBackwardNeedsARetainedGraphAndAccumulates) {
  torch::manual_seed(0);
  const auto input = integer_leaf({4, 3, 5});
  const auto weight = slopes(3).requires_grad_();
  const auto loss = torch_ext::prelu(input, weight).sum();
  loss.backward({}, /*retain_graph=*/true);
  const auto once = weight.grad().clone();
  EXPECT_GT(once.norm().item<double>(), 0);
  loss.backward();
  EXPECT_TRUE(same(weight.grad(), 2 * once));
  EXPECT_TRUE(contains(error_of([&] { loss.backward(); }), "a second time"));
}

TEST(PreluAutogradTest, AnInputThatWasOverwrittenIsAnErrorInBackward) {
  for (const bool overwrite_input : {true, false}) {
    const auto input = random_leaf({2, 3});
    const auto weight = random_leaf({3});
    const auto x = input * 1;
    const auto w = weight * 1;
    const auto loss = torch_ext::prelu(x, w).sum();
    (overwrite_input ? x : w).mul_(2);
    EXPECT_TRUE(contains(error_of([&] { loss.backward(); }), "modified by an inplace operation"));
  }
}

TEST(PreluAutogradTest, AGraphThatIsDroppedFreesWhatItSaved) {
  const auto references = [](const Tensor& tensor) { return tensor.getIntrusivePtr().use_count(); };
  const auto input = random_leaf({2, 3});
  const auto weight = random_leaf({3});
  const auto grad_output = random_leaf({2, 3});
  const std::array before{references(input), references(weight), references(grad_output)};
  {
    const auto output = torch_ext::prelu(input, weight);
    const auto gradients =
        torch::autograd::grad({output}, {input, weight}, {grad_output}, true, true);
    EXPECT_TRUE(gradients[1].requires_grad());
    EXPECT_GT(references(input), before[0]);
  }
  EXPECT_EQ((std::array{references(input), references(weight), references(grad_output)}), before);
}

TEST(PreluAutogradTest, AGraphOfManyLayersIsFreedWithoutRecursion) {
  const auto weight = torch::full({1}, 0.5F).requires_grad_();
  auto output = torch::ones({1});
  for (int layer = 0; layer < 100'000; ++layer) {
    output = torch_ext::prelu(output, weight);
  }
  EXPECT_TRUE(output.requires_grad());
  output = Tensor();  // a destructor that recursed through the graph would overflow the stack
}

// ---- Hooks and names --------------------------------------------------------------------------

TEST(PreluAutogradTest, HooksSeeAndChangeGradients) {
  torch::manual_seed(0);
  const auto input = integer_leaf({4, 3, 5});
  const auto weight = slopes(3).requires_grad_();
  const auto output = torch_ext::prelu(input, weight);
  Tensor seen;
  output.register_hook([&](const Tensor& gradient) {
    seen = gradient;
    return 2 * gradient;
  });
  weight.register_hook([](const Tensor& gradient) { return -gradient; });
  output.sum().backward();

  const auto ones = torch::ones_like(input);
  const auto expected = oracle(2 * ones, input, weight);
  EXPECT_TRUE(same(seen, ones));
  EXPECT_TRUE(same(input.grad(), expected.grad_input));
  EXPECT_TRUE(same(weight.grad(), -expected.grad_weight));
}

TEST(PreluAutogradTest, TheGraphNamesItsNode) {
  const auto output = torch_ext::prelu(random_leaf({2, 3}), random_leaf({3}));
  EXPECT_EQ(output.grad_fn()->name(), "TorchExtPreluBackward");
  EXPECT_EQ(output.grad_fn()->num_inputs(), 1U);
  EXPECT_EQ(output.grad_fn()->num_outputs(), 2U);
}

// ---- Second derivatives -----------------------------------------------------------------------

// The derivatives of <grad_input, along_input> + <grad_weight, along_weight> with respect to input,
// weight and grad_output.
template <typename Operation>
std::vector<Tensor> second_derivatives(
    const Operation& operation,
    const Tensor& input,
    const Tensor& weight,
    const Tensor& grad_output,
    const Tensor& along_input,
    const Tensor& along_weight) {
  const auto first = torch::autograd::grad(
      {operation(input, weight)}, {input, weight}, {grad_output}, /*retain_graph=*/true,
      /*create_graph=*/true);
  return torch::autograd::grad(
      {first[0], first[1]}, {input, weight, grad_output}, {along_input, along_weight});
}

TEST(PreluDoubleBackwardTest, SecondDerivativesAreThoseOfTheDefinition) {
  torch::manual_seed(0);
  const auto input = random_leaf({4, 3, 5});
  const auto weight = random_leaf({3});
  const auto grad_output = random_leaf({4, 3, 5});
  const auto along_input = torch::randn({4, 3, 5}, torch::kDouble);
  const auto along_weight = torch::randn({3}, torch::kDouble);
  ASSERT_TRUE(both_branches(input));
  const auto of = [&](const auto& operation) {
    return second_derivatives(operation, input, weight, grad_output, along_input, along_weight);
  };
  const auto actual = of(torch_ext::prelu);
  const auto expected = of(composed_prelu);
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_GT(expected[i].norm().item<double>(), 0);
    EXPECT_TRUE(torch::allclose(actual[i], expected[i], 1e-12, 1e-12)) << "derivative " << i;
  }
}

// By hand: grad_input is g or w·g, grad_weight the sum of 0 or x·g, so at x <= 0 the derivatives
// along u and v are v·g for x, the sum of u·g for w, u·w + v·x for g; at x > 0 they are 0, 0 and u.
TEST(PreluDoubleBackwardTest, TheFormulasHoldExactlyAndZeroIsOnTheSlopesSide) {
  torch::manual_seed(0);
  auto values = integers({4, 3, 5}, 4);
  values.index_put_({0}, 0);
  const auto x = values.requires_grad_();
  const auto w = slopes(3).requires_grad_();
  const auto g = integer_leaf({4, 3, 5}, 3);
  const auto u = integers({4, 3, 5}, 2).flip(1);
  const auto v = torch::tensor({-2.0, 3.0, 1.0}, torch::kDouble);
  const auto on_slope = x.detach().le(0).to(torch::kDouble);

  const auto actual = second_derivatives(torch_ext::prelu, x, w, g, u, v);
  EXPECT_TRUE(same(actual[0], on_slope * per_channel(v) * g));
  EXPECT_TRUE(same(actual[1], (on_slope * u * g).sum(at::IntArrayRef{0, 2})));
  EXPECT_TRUE(
      same(actual[2], u * (1 - on_slope) + on_slope * (u * per_channel(w) + per_channel(v) * x)));
  EXPECT_GT(actual[0].norm().item<double>(), 0);
  EXPECT_GT(actual[1].norm().item<double>(), 0);
}

TEST(PreluDoubleBackwardTest, ThirdDerivativesAreThoseOfTheDefinition) {
  torch::manual_seed(0);
  const auto input = random_leaf({4, 3, 5});
  const auto weight = random_leaf({3});
  const auto third_derivatives = [&](const auto& operation) {
    auto scalar = operation(input, weight).pow(3).sum();
    for (int order = 1; order < 3; ++order) {
      const auto gradients =
          torch::autograd::grad({scalar}, {input, weight}, {}, true, /*create_graph=*/true);
      scalar = gradients[0].pow(2).sum() + gradients[1].pow(2).sum();
    }
    return torch::autograd::grad({scalar}, {input, weight});
  };
  const auto actual = third_derivatives(torch_ext::prelu);
  const auto expected = third_derivatives(composed_prelu);
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_GT(expected[i].norm().item<double>(), 0);
    EXPECT_TRUE(torch::allclose(actual[i], expected[i], 1e-10)) << "derivative " << i;
  }
}

TEST(PreluDoubleBackwardTest, PreluBackwardIsDifferentiableItselfForEveryMask) {
  torch::manual_seed(0);
  for (const auto& mask : {std::array{true, true}, {true, false}, {false, true}}) {
    const auto input = random_leaf({4, 3, 5});
    const auto weight = random_leaf({3});
    const auto grad_output = random_leaf({4, 3, 5});
    const auto [grad_input, grad_weight] =
        torch_ext::prelu_backward(grad_output, input, weight, mask);
    auto loss = torch::zeros({}, torch::kDouble);
    for (const auto& gradient : {grad_input, grad_weight}) {
      loss = gradient.defined() ? loss + gradient.sum() : loss;
    }
    loss.backward();
    // grad_input does not depend on input's values, nor grad_weight on the slopes.
    EXPECT_GT(grad_output.grad().norm().item<double>(), 0);
    EXPECT_EQ(input.grad().defined() && input.grad().norm().item<double>() > 0, mask[1]);
    EXPECT_EQ(weight.grad().defined() && weight.grad().norm().item<double>() > 0, mask[0]);
  }
}

// ---- Forward mode -----------------------------------------------------------------------------

TEST(PreluForwardModeTest, TheTangentIsTheOneOfTheDefinition) {
  torch::manual_seed(0);
  const auto x = integers({4, 3, 5}, 4);
  const auto w = slopes(3);
  const auto dx = integers({4, 3, 5}, 3).flip(0);
  const auto dw = torch::tensor({-2.0, 3.0, 1.0}, torch::kDouble);

  const auto level = static_cast<int64_t>(torch::autograd::ForwardADLevel::get_next_idx());
  const auto dual = torch_ext::prelu(at::_make_dual(x, dx, level), at::_make_dual(w, dw, level));
  const auto [output, tangent] = at::_unpack_dual(dual, level);
  torch::autograd::ForwardADLevel::release_idx(level);

  EXPECT_TRUE(same(output, torch_ext::prelu(x, w)));
  EXPECT_TRUE(same(tangent, torch::where(x > 0, dx, per_channel(w) * dx + per_channel(dw) * x)));
}

}  // namespace
