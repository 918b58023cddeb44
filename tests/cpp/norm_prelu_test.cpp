// The functions of torch_ext/norm_prelu.h against PyTorch's norms and PReLU in double, with running
// statistics, gradients and errors.
#include <torch/csrc/autograd/autograd.h>
#include <torch_ext/norm_prelu.h>
#include <torch_ext/prelu.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "prelu_oracle.h"

namespace {

using namespace torch_ext::testing;

struct Tensors {
  Tensor input, slope, running_mean, running_var, weight, bias;

  explicit Tensors(at::ScalarType dtype = at::kDouble) {
    torch::manual_seed(0);
    const auto options = torch::dtype(dtype);
    input = (torch::randn({5, 7, 9, 11}, torch::kDouble) * 2 + 1).to(options).requires_grad_();
    slope = slopes(7).to(options).requires_grad_();
    running_mean = torch::rand({7}, options);
    running_var = torch::rand({7}, options) + 0.5;
    weight = (torch::rand({7}, options) + 0.5).requires_grad_();
    bias = torch::randn({7}, options).requires_grad_();
  }

  std::vector<Tensor> gradients(const Tensor& output) const {
    const auto grad_output = torch::linspace(-1, 1, output.numel(), output.options());
    return torch::autograd::grad(
        {output}, {input, slope, weight, bias}, {grad_output.view_as(output)});
  }
};

constexpr double kMomentum = 0.3;
constexpr double kEps = 1e-3;

using Function = std::function<Tensor(const Tensors&, bool training)>;

Tensor batch_ours(const Tensors& t, bool training) {
  return torch_ext::batch_norm_prelu(
      t.input, t.slope, t.running_mean, t.running_var, t.weight, t.bias, training, kMomentum, kEps);
}

Tensor batch_theirs(const Tensors& t, bool training) {
  return at::prelu(
      at::batch_norm(
          t.input, t.weight, t.bias, t.running_mean, t.running_var, training, kMomentum, kEps,
          /*cudnn_enabled=*/false),
      t.slope);
}

Tensor instance_ours(const Tensors& t, bool training) {
  return torch_ext::instance_norm_prelu(
      t.input, t.slope, t.running_mean, t.running_var, t.weight, t.bias, training, kMomentum, kEps);
}

Tensor instance_theirs(const Tensors& t, bool training) {
  return at::prelu(
      at::instance_norm(
          t.input, t.weight, t.bias, t.running_mean, t.running_var, training, kMomentum, kEps,
          /*cudnn_enabled=*/false),
      t.slope);
}

void expect_same_results(const Function& ours, const Function& theirs, bool training) {
  const Tensors actual, expected;
  const Tensor before = actual.running_var.clone();
  const Tensor output = ours(actual, training), output_of_pair = theirs(expected, training);
  const Tensor of_positive_slope = output.select(1, 2);
  EXPECT_TRUE(of_positive_slope.gt(0).any().item<bool>());
  EXPECT_TRUE(of_positive_slope.lt(0).any().item<bool>());
  EXPECT_TRUE(torch::allclose(output, output_of_pair, 1e-11, 1e-11));
  const auto gradients = actual.gradients(output);
  const auto gradients_of_pair = expected.gradients(output_of_pair);
  for (size_t i = 0; i < gradients.size(); ++i) {
    EXPECT_GT(gradients[i].abs().max().item<double>(), 0);
    EXPECT_TRUE(torch::allclose(gradients[i], gradients_of_pair[i], 1e-10, 1e-10)) << i;
  }
  EXPECT_TRUE(torch::allclose(actual.running_mean, expected.running_mean, 1e-12, 1e-12));
  EXPECT_TRUE(torch::allclose(actual.running_var, expected.running_var, 1e-12, 1e-12));
  EXPECT_EQ(torch::equal(actual.running_var, before), !training);
}

TEST(NormPreluTest, BatchNorm) {
  expect_same_results(batch_ours, batch_theirs, /*training=*/true);
  expect_same_results(batch_ours, batch_theirs, /*training=*/false);
}

TEST(NormPreluTest, InstanceNorm) {
  expect_same_results(instance_ours, instance_theirs, /*training=*/true);
  expect_same_results(instance_ours, instance_theirs, /*training=*/false);
}

TEST(NormPreluTest, WithoutParametersAndBuffers) {
  const Tensors t(at::kFloat);
  const auto expected_norm = [&](at::IntArrayRef dims) {
    const Tensor x = t.input.detach().to(torch::kDouble);
    return (x - x.mean(dims, true)) / (x.var(dims, /*unbiased=*/false, true) + 1e-5).sqrt();
  };
  const Tensor slope = t.slope.detach().to(torch::kDouble);
  const Tensor batch = torch_ext::batch_norm_prelu(
      t.input, t.slope, std::nullopt, std::nullopt, std::nullopt, std::nullopt, /*training=*/true);
  EXPECT_TRUE(
      torch::allclose(
          batch.to(torch::kDouble), at::prelu(expected_norm({0, 2, 3}), slope), 1e-5, 1e-5));
  const Tensor instance = torch_ext::instance_norm_prelu(t.input, t.slope);
  EXPECT_TRUE(
      torch::allclose(
          instance.to(torch::kDouble), at::prelu(expected_norm({2, 3}), slope), 1e-5, 1e-5));
  EXPECT_FALSE(torch::allclose(batch, instance, 1e-2, 1e-2));
}

TEST(NormPreluTest, SixteenBitDataWithFloat32Parameters) {
  Tensors t(at::kFloat);
  t.input = t.input.detach().to(at::kBFloat16).requires_grad_();
  const Tensor output = batch_ours(t, /*training=*/true);
  EXPECT_EQ(output.scalar_type(), at::kBFloat16);
  const auto gradients = t.gradients(output);
  EXPECT_EQ(gradients[0].scalar_type(), at::kBFloat16);
  for (size_t i = 1; i < gradients.size(); ++i) {
    EXPECT_EQ(gradients[i].scalar_type(), at::kFloat);
  }
  EXPECT_EQ(t.running_var.scalar_type(), at::kFloat);
}

TEST(NormPreluTest, Errors) {
  const Tensors t;
  const auto training = [&](const Tensor& input) {
    return [&, input] {
      torch_ext::batch_norm_prelu(
          input, t.slope, t.running_mean, t.running_var, t.weight, t.bias, /*training=*/true);
    };
  };
  EXPECT_EQ(
      error_of<c10::ValueError>(training(torch::ones({1, 7, 1}, torch::kDouble))),
      "Expected more than 1 value per channel when training, got input size torch.Size([1, 7, 1])");
  EXPECT_EQ(
      error_of(training(torch::ones({2, 8, 3}, torch::kDouble))),
      "running_mean should contain 8 elements not 7");
  EXPECT_EQ(
      error_of<c10::ValueError>(
          [&] { torch_ext::instance_norm_prelu(torch::ones({2, 7, 1}, torch::kDouble), t.slope); }),
      "Expected more than 1 spatial element when training, got input size torch.Size([2, 7, 1])");
  EXPECT_EQ(
      error_of([&] { torch_ext::batch_norm_prelu(t.input, t.slope, std::nullopt, std::nullopt); }),
      "running_mean must be defined in evaluation mode");
  EXPECT_TRUE(contains(
      error_of([&] {
        torch_ext::batch_norm_prelu(
            t.input, torch::ones({6}, torch::kDouble), t.running_mean, t.running_var);
      }),
      "Mismatch of parameter numbers"));
}

}  // namespace
