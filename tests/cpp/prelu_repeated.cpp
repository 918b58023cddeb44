// Calls every path of the operators again and again, for the leak sanitizer (`make leaks`).
// prelu_repeated [CALLS]
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>
#include <torch_ext/nn.h>
#include <torch_ext/override_aten.h>
#include <torch_ext/prelu.h>

#include <cstdio>
#include <cstdlib>

namespace {

using at::Tensor;

template <typename Call>
void expect_error(const Call& call) {
  try {
    call();
  } catch (const c10::Error&) {
    return;
  }
  std::abort();
}

void train(const Tensor& data, at::ScalarType weight_type) {
  const auto input = data.detach().requires_grad_();
  const auto weight = torch::full({data.size(1)}, 0.25, weight_type).requires_grad_();
  torch_ext::prelu(input, weight).sum().backward();
}

void differentiate_twice(const Tensor& data) {
  const auto input = data.to(torch::kDouble).requires_grad_();
  const auto weight = torch::full({1}, 0.25, torch::kDouble).requires_grad_();
  const auto output = torch_ext::prelu(input, weight).pow(2).sum();
  const auto first = torch::autograd::grad({output}, {input, weight}, {}, true, true);
  (first[0].sum() + first[1].sum()).backward();
}

void forget_the_graph(const Tensor& data) {
  torch_ext::prelu(data.detach().requires_grad_(), torch::ones({1}));
}

void fail(const Tensor& data) {
  const auto wrong = torch::ones({data.size(1) + 1});
  expect_error([&] { torch_ext::prelu(data, wrong); });
  expect_error([&] { torch_ext::prelu(data.detach().requires_grad_(), wrong); });
  expect_error([&] { torch_ext::prelu(data, torch::ones({1}, torch::kDouble)); });
  expect_error([&] { torch_ext::prelu(data.to(torch::kLong), torch::ones({1}, torch::kLong)); });
  expect_error(
      [&] { torch_ext::prelu_backward(data.flatten(), data, torch::ones({1}), {true, true}); });
  const auto input = data.detach().requires_grad_();
  const auto loss = torch_ext::prelu(input, torch::ones({1})).sum();
  loss.backward();
  expect_error([&] { loss.backward(); });  // the graph is gone
}

void use_a_module(const Tensor& data) {
  torch_ext::nn::PReLU module(torch::nn::PReLUOptions().num_parameters(data.size(1)));
  module->forward(data).sum().backward();
  const torch_ext::OverrideAten override_aten;
  at::prelu(data, module->weight).sum().backward();
}

}  // namespace

int main(int count, char** arguments) {
  const int calls = count > 1 ? std::atoi(arguments[1]) : 1000;
  const auto small = torch::randn({2, 3, 5, 7});
  const auto split = torch::randn({3, 3, 70000}).transpose(0, 1);  // sums in several parts
  for (int call = 0; call < calls; ++call) {
    train(small, torch::kFloat);
    train(small.to(torch::kHalf), torch::kFloat);
    train(small.contiguous(at::MemoryFormat::ChannelsLast), torch::kFloat);
    train(small.expand({2, 3, 5, 7}).slice(3, 0, 7, 2), torch::kFloat);
    differentiate_twice(small);
    forget_the_graph(small);
    fail(small);
    use_a_module(small);
    if (call % 100 == 0) {
      train(split, torch::kFloat);
    }
  }
  std::printf("%d calls of every path\n", calls);
}
