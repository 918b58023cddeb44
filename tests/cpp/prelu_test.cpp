// The functions of torch_ext/prelu.h: values and gradients against an oracle in double, errors, and
// the operators by name alone.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch_ext/prelu.h>

#include <array>
#include <functional>
#include <regex>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "prelu_oracle.h"

namespace {

using namespace torch_ext::testing;
using at::indexing::Slice;

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

// ---- Errors -----------------------------------------------------------------------------------

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

TEST(PreluErrorsTest, AnUndefinedTensorIsNamed) {
  const auto defined = torch::ones({2, 3});
  EXPECT_TRUE(contains(error_of([&] { torch_ext::prelu(Tensor(), defined); }), "input"));
  EXPECT_TRUE(contains(error_of([&] { torch_ext::prelu(defined, Tensor()); }), "weight"));
}

TEST(PreluErrorsTest, AnErrorLeavesTheOperatorUsable) {
  const auto input = torch::randn({2, 3}).requires_grad_();
  const auto weight = torch::full({3}, 0.5F).requires_grad_();
  EXPECT_THROW(torch_ext::prelu(input, torch::ones({4})), c10::Error);
  torch_ext::prelu(input, weight).sum().backward();
  EXPECT_TRUE(input.grad().defined());
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
