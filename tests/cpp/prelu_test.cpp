// What a C++ program sees: torch_ext::prelu and prelu_backward against an oracle in double, their
// errors, autograd, torch_ext::nn::PReLU, and the operators by name alone.
#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>
#include <torch/torch.h>
#include <torch_ext/nn.h>
#include <torch_ext/prelu.h>

#include <array>
#include <functional>
#include <memory>
#include <regex>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

namespace {

using at::Tensor;
using at::indexing::Slice;

// ---- Data and oracle --------------------------------------------------------------------------

// Small integers, half of them negative, none zero: every product and sum of them is exact in every
// dtype and in any order, so that results can be compared bit for bit.
Tensor integers(at::IntArrayRef shape, int64_t largest) {
  auto values = torch::randint(1, largest + 1, shape, torch::kDouble).flatten();
  values.index({Slice(at::indexing::None, at::indexing::None, 2)}).neg_();
  return values.view(shape);
}

Tensor slopes(int64_t count) {
  static const std::vector<double> kValues = {-1, 0.25, 2, 0, -0.5, 1, 0.5};
  std::vector<double> chosen;
  for (int64_t i = 0; i < count; ++i) {
    chosen.push_back(kValues[i % kValues.size()]);
  }
  return torch::tensor(chosen, torch::kDouble);
}

struct Results {
  Tensor output, grad_input, grad_weight;
};

// The definition, element by element, in double.
Results oracle(const Tensor& grad_output, const Tensor& input, const Tensor& weight) {
  const auto x = input.to(torch::kDouble).contiguous();
  const auto g = grad_output.to(torch::kDouble).contiguous();
  const auto w = weight.to(torch::kDouble).contiguous();
  const int64_t channels = w.numel();
  int64_t inner = 1;
  for (int64_t dim = 2; dim < x.dim(); ++dim) {
    inner *= x.size(dim);
  }
  Results result{torch::empty_like(x), torch::empty_like(x), torch::zeros_like(w)};
  for (int64_t i = 0; i < x.numel(); ++i) {
    const int64_t channel = channels == 1 ? 0 : i / inner % channels;
    const double slope = w.data_ptr<double>()[channel];
    const double xi = x.data_ptr<double>()[i];
    const double gi = g.data_ptr<double>()[i];
    result.output.data_ptr<double>()[i] = xi > 0 ? xi : slope * xi;
    result.grad_input.data_ptr<double>()[i] = xi > 0 ? gi : slope * gi;
    result.grad_weight.data_ptr<double>()[channel] += xi > 0 ? 0 : xi * gi;
  }
  return result;
}

::testing::AssertionResult both_branches(const Tensor& input) {
  const double positive = input.gt(0).to(torch::kDouble).mean().item<double>();
  if (positive >= 0.25 && positive <= 0.75) {
    return ::testing::AssertionSuccess();
  }
  return ::testing::AssertionFailure() << "the share of positive inputs is " << positive;
}

::testing::AssertionResult same(const Tensor& actual, const Tensor& expected) {
  if (actual.scalar_type() != expected.scalar_type() || !torch::equal(actual, expected)) {
    return ::testing::AssertionFailure() << actual << "\ninstead of\n" << expected;
  }
  return ::testing::AssertionSuccess();
}

// ---- Values and gradients, for every dtype and layout -----------------------------------------

struct Layout {
  std::string name;
  std::vector<int64_t> shape;
  int64_t num_parameters;
  std::function<Tensor(const Tensor&)> arrange = [](const Tensor& values) { return values; };
};

const std::vector<Layout> kLayouts = {
    {"Vector", {67}, 1},
    {"Rows", {9, 7}, 7},
    {"Image", {2, 5, 6, 7}, 5},
    {"ImageSharedSlope", {2, 5, 6, 7}, 1},
    {"ImageChannelsLast",
     {2, 5, 6, 7},
     5,
     [](const Tensor& values) { return values.contiguous(at::MemoryFormat::ChannelsLast); }},
    {"ImageTransposed",
     {6, 6, 6, 6},
     6,
     [](const Tensor& values) { return values.transpose(0, 3).contiguous().transpose(0, 3); }},
    {"EveryOtherElement",
     {3, 4, 10},
     4,
     [](const Tensor& values) {
       return values.repeat_interleave(2, -1).index({"...", Slice(0, at::indexing::None, 2)});
     }},
};

struct DtypePair {
  at::ScalarType input, weight;
};

constexpr std::array kDtypes = {
    DtypePair{at::kDouble, at::kDouble}, DtypePair{at::kFloat, at::kFloat},
    DtypePair{at::kHalf, at::kHalf},     DtypePair{at::kBFloat16, at::kBFloat16},
    DtypePair{at::kHalf, at::kFloat},    DtypePair{at::kBFloat16, at::kFloat},
};

class PreluValuesTest : public ::testing::TestWithParam<std::tuple<Layout, DtypePair>> {
 protected:
  PreluValuesTest() {
    torch::manual_seed(0);
    const auto& [layout, dtypes] = GetParam();
    input_ = layout.arrange(integers(layout.shape, 4).to(dtypes.input));
    grad_output_ = layout.arrange(integers(layout.shape, 3).flip(0).to(dtypes.input));
    weight_ = slopes(layout.num_parameters).to(dtypes.weight);
    expected_ = oracle(grad_output_, input_, weight_);
    expected_.output = expected_.output.to(dtypes.input);
    expected_.grad_input = expected_.grad_input.to(dtypes.input);
    expected_.grad_weight = expected_.grad_weight.to(dtypes.weight);
    EXPECT_TRUE(both_branches(input_));
    EXPECT_NE(expected_.grad_weight.abs().max().item<double>(), 0);
  }

  Tensor input_, grad_output_, weight_;
  Results expected_;
};

TEST_P(PreluValuesTest, TheOutputIsTheDefinition) {
  const auto output = torch_ext::prelu(input_, weight_);
  EXPECT_TRUE(same(output, expected_.output));
  EXPECT_EQ(output.strides(), torch::empty_like(input_).strides());
}

TEST_P(PreluValuesTest, AutogradGivesBothGradients) {
  input_.requires_grad_();
  weight_.requires_grad_();
  torch_ext::prelu(input_, weight_).backward(grad_output_);
  EXPECT_TRUE(same(input_.grad(), expected_.grad_input));
  EXPECT_TRUE(same(weight_.grad(), expected_.grad_weight));
}

TEST_P(PreluValuesTest, PreluBackwardComputesWhatTheMaskAsksFor) {
  for (const auto& mask :
       {std::array{true, true}, std::array{true, false}, std::array{false, true},
        std::array{false, false}}) {
    const auto [grad_input, grad_weight] =
        torch_ext::prelu_backward(grad_output_, input_, weight_, mask);
    ASSERT_EQ(grad_input.defined(), mask[0]);
    ASSERT_EQ(grad_weight.defined(), mask[1]);
    if (mask[0]) {
      EXPECT_TRUE(same(grad_input, expected_.grad_input));
    }
    if (mask[1]) {
      EXPECT_TRUE(same(grad_weight, expected_.grad_weight));
    }
  }
}

std::string test_name(const ::testing::TestParamInfo<std::tuple<Layout, DtypePair>>& info) {
  const auto& [layout, dtypes] = info.param;
  const std::string name = layout.name + at::toString(dtypes.input);
  return dtypes.weight == dtypes.input ? name : name + "With" + at::toString(dtypes.weight);
}

INSTANTIATE_TEST_SUITE_P(
    All,
    PreluValuesTest,
    ::testing::Combine(::testing::ValuesIn(kLayouts), ::testing::ValuesIn(kDtypes)),
    test_name);

// ---- Autograd ---------------------------------------------------------------------------------

Tensor random_leaf(at::IntArrayRef shape) {
  return torch::randn(shape, torch::kDouble).requires_grad_();
}

// PReLU from plain operators, whose derivatives of any order are PyTorch's own.
Tensor composed_prelu(const Tensor& input, const Tensor& weight) {
  return torch::where(input > 0, input, weight.view({1, -1, 1}) * input);
}

TEST(PreluAutogradTest, SecondDerivativesAreThoseOfTheDefinition) {
  torch::manual_seed(0);
  const auto input = random_leaf({4, 3, 5});
  const auto weight = random_leaf({3});
  const auto grad_output = random_leaf({4, 3, 5});
  const auto along_input = torch::randn({4, 3, 5}, torch::kDouble);
  const auto along_weight = torch::randn({3}, torch::kDouble);
  ASSERT_TRUE(both_branches(input));

  const auto second_derivatives = [&](const auto& operation) {
    const auto first = torch::autograd::grad(
        {operation(input, weight)}, {input, weight}, {grad_output}, /*retain_graph=*/true,
        /*create_graph=*/true);
    return torch::autograd::grad(
        {first[0], first[1]}, {input, weight, grad_output}, {along_input, along_weight});
  };
  const auto actual = second_derivatives(torch_ext::prelu);
  const auto expected = second_derivatives(composed_prelu);
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_GT(expected[i].norm().item<double>(), 0);
    EXPECT_TRUE(torch::allclose(actual[i], expected[i], 1e-12, 1e-12)) << "derivative " << i;
  }
}

TEST(PreluAutogradTest, PreluBackwardIsDifferentiableItself) {
  torch::manual_seed(0);
  const auto input = random_leaf({4, 3, 5});
  const auto weight = random_leaf({3});
  const auto grad_output = random_leaf({4, 3, 5});
  const auto [grad_input, grad_weight] =
      torch_ext::prelu_backward(grad_output, input, weight, {true, true});
  (grad_input.sum() + grad_weight.sum()).backward();
  EXPECT_GT(input.grad().norm().item<double>(), 0);
  EXPECT_GT(weight.grad().norm().item<double>(), 0);
  EXPECT_GT(grad_output.grad().norm().item<double>(), 0);
}

TEST(PreluAutogradTest, NothingIsRecordedWhereNothingRequiresGradients) {
  const auto weight = random_leaf({3});
  EXPECT_TRUE(torch_ext::prelu(torch::randn({2, 3}, torch::kDouble), weight).requires_grad());
  EXPECT_FALSE(torch_ext::prelu(torch::randn({2, 3}), torch::randn({3})).requires_grad());
  const torch::NoGradGuard no_grad;
  EXPECT_FALSE(torch_ext::prelu(torch::randn({2, 3}, torch::kDouble), weight).requires_grad());
}

TEST(PreluAutogradTest, AFrozenSlopeGetsNoGradient) {
  auto input = random_leaf({2, 3});
  const auto weight = random_leaf({3}).detach();
  torch_ext::prelu(input, weight).sum().backward();
  EXPECT_TRUE(input.grad().defined());
  EXPECT_FALSE(weight.grad().defined());
}

// ---- Errors -----------------------------------------------------------------------------------

// The message of the error that `call` raises; empty if it raises none.
template <typename Error = c10::Error>
std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what_without_backtrace();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(PreluErrorsTest, WrongArgumentsRaiseWhatStockRaises) {
  const auto input = torch::randn({2, 3, 4});
  const std::vector<std::tuple<Tensor, Tensor, std::string>> kWrong = {
      {input, torch::ones({4}), "Mismatch of parameter numbers"},
      {torch::ones({5}), torch::ones({5}), "Mismatch of parameter numbers"},
      {input, torch::ones({3}, torch::kDouble), "Type promoting not supported"},
      {input.to(torch::kDouble), torch::ones({3}), "Type promoting not supported"},
      {torch::ones({}), torch::ones({3}), "zero-dim input"},
      {input, torch::ones({1, 3}), "scalar or 1D tensor"},
  };
  for (const auto& [x, w, part] : kWrong) {
    const auto message = error_of([x = x, w = w] { torch_ext::prelu(x, w); });
    EXPECT_TRUE(contains(message, part)) << message;
    EXPECT_EQ(message, error_of([x = x, w = w] { at::prelu(x, w); }));
  }
}

TEST(PreluErrorsTest, UnsupportedDtypesAreNotImplemented) {
  const auto message = error_of<c10::NotImplementedError>(
      [] { torch_ext::prelu(torch::ones({2, 3}, torch::kLong), torch::ones({3}, torch::kLong)); });
  EXPECT_EQ(message, "\"prelu_cpu\" not implemented for 'Long'");
}

TEST(PreluErrorsTest, PreluBackwardChecksEveryArgument) {
  const auto input = torch::randn({2, 3, 4});
  const auto weight = torch::ones({3});
  const auto error = [](const Tensor& grad_output, const Tensor& x, const Tensor& w) {
    return error_of([&] { torch_ext::prelu_backward(grad_output, x, w, {true, true}); });
  };
  ASSERT_EQ(error(input, input, weight), "");
  EXPECT_TRUE(contains(error(torch::randn({2, 3, 5}), input, weight), "grad_output"));
  EXPECT_TRUE(contains(error(torch::randn({1}), input, weight), "grad_output"));
  EXPECT_TRUE(contains(error(input.to(torch::kDouble), input, weight), "grad_output"));
  EXPECT_TRUE(contains(error(input, input, torch::ones({4})), "Mismatch of parameter numbers"));
  EXPECT_TRUE(contains(error(Tensor(), input, weight), "grad_output"));
  EXPECT_TRUE(contains(error(input, Tensor(), weight), "input"));
  EXPECT_TRUE(contains(error(input, input, Tensor()), "weight"));
}

// ---- torch_ext::nn::PReLU ---------------------------------------------------------------------

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

// ---- The operators by name --------------------------------------------------------------------

TEST(PreluDispatcherTest, BothSchemasAreRegistered) {
  const auto schema = [](const char* name) {
    std::ostringstream text;
    text << c10::Dispatcher::singleton().findSchemaOrThrow(name, "").schema();
    return text.str();
  };
  EXPECT_EQ(schema("torch_ext::prelu"), "torch_ext::prelu(Tensor input, Tensor weight) -> Tensor");
  EXPECT_EQ(
      schema("torch_ext::prelu_backward"),
      "torch_ext::prelu_backward(Tensor grad_output, Tensor input, Tensor weight, "
      "bool[2] output_mask) -> (Tensor grad_input, Tensor grad_weight)");
}

TEST(PreluDispatcherTest, CallsWithoutTheHeaderReachTheSameOperatorsAndDifferentiate) {
  const auto operation = c10::Dispatcher::singleton().findSchemaOrThrow("torch_ext::prelu", "");
  const auto input = torch::tensor({-2.0F, 0.5F, 3.0F}).requires_grad_();
  const auto weight = torch::tensor({0.25F}).requires_grad_();
  const auto output = operation.typed<Tensor(const Tensor&, const Tensor&)>().call(input, weight);
  EXPECT_TRUE(same(output, torch::tensor({-0.5F, 0.5F, 3.0F})));
  output.sum().backward();
  EXPECT_TRUE(same(input.grad(), torch::tensor({0.25F, 1.0F, 1.0F})));
  EXPECT_TRUE(same(weight.grad(), torch::tensor({-2.0F})));

  torch::jit::Stack stack{input.detach(), weight.detach()};  // as TorchScript calls it
  operation.callBoxed(stack);
  ASSERT_EQ(stack.size(), 1U);
  EXPECT_TRUE(same(stack[0].toTensor(), output.detach()));
}

TEST(PreluVersionTest, NamesTheVersionTheTorchAndTheCuda) {
  const std::regex pattern(R"(\d+\.\d+\.\d+\+pt\d+\.\d+(cpu|cu\d+))");
  EXPECT_TRUE(std::regex_match(torch_ext::version(), pattern)) << torch_ext::version();
}

}  // namespace
