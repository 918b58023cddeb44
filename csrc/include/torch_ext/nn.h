// The fused PReLU as a module of the C++ frontend, in place of torch::nn::PReLU.
//
//   #include <torch_ext/nn.h>
//   torch::nn::Sequential net(
//       torch::nn::Linear(8, 64),
//       torch_ext::nn::PReLU(torch::nn::PReLUOptions().num_parameters(64).init(0.25)));
//
// Options     those of torch::nn::PReLU: num_parameters (1, or the number of channels) and init.
// Parameters  `weight`, shape (num_parameters), every element init. torch::save and torch::load
//             exchange it with torch::nn::PReLU, in both directions.
// Formulas, shapes, dtypes, errors: torch_ext/prelu.h.
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/options/activation.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>
#include <torch_ext/prelu.h>

#include <ostream>

namespace torch_ext::nn {

class PReLUImpl : public torch::nn::Cloneable<PReLUImpl> {
 public:
  explicit PReLUImpl(const torch::nn::PReLUOptions& options_ = {}) : options(options_) {
    PReLUImpl::reset();
  }

  torch::Tensor forward(const torch::Tensor& input) { return torch_ext::prelu(input, weight); }

  // Registers the parameter with its initial value; for the constructor and clone().
  void reset() override {
    weight = register_parameter("weight", torch::full({options.num_parameters()}, options.init()));
  }

  void pretty_print(std::ostream& stream) const override {
    stream << "torch_ext::nn::PReLU(num_parameters=" << options.num_parameters() << ")";
  }

  torch::nn::PReLUOptions options;
  torch::Tensor weight;
};

// Owns a PReLUImpl by reference, like every module of torch::nn.
TORCH_MODULE(PReLU);

}  // namespace torch_ext::nn
