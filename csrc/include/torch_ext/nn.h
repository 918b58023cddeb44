// Modules of the C++ frontend: PReLU, in place of torch::nn::PReLU, and a norm with its PReLU.
//
//   #include <torch/nn.h>
//   #include <torch_ext/nn.h>
//
//   const auto slopes = torch::nn::PReLUOptions().num_parameters(64).init(0.25);
//   torch::nn::Sequential net(
//       torch::nn::Conv2d(torch::nn::Conv2dOptions(3, 64, 3).bias(false)),
//       torch_ext::nn::NormPReLU(torch::nn::BatchNorm2d(64), torch_ext::nn::PReLU(slopes)),
//       torch::nn::Conv2d(64, 64, 3),
//       torch_ext::nn::PReLU(slopes));
//
// Formulas, shapes, dtypes, errors: torch_ext/prelu.h, torch_ext/norm_prelu.h.
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/instancenorm.h>
#include <torch/nn/options/activation.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>
#include <torch_ext/norm_prelu.h>
#include <torch_ext/prelu.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <ostream>

namespace torch_ext::nn {

// Options     those of torch::nn::PReLU: num_parameters (1, or the number of channels) and init.
// Parameters  `weight`, shape (num_parameters), every element init. torch::save and torch::load
//             exchange it with torch::nn::PReLU, in both directions.
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

// A batch or instance norm of torch::nn and the PReLU after it (this one or torch::nn's), as one
// operator. The two modules are the children `norm` and `prelu` and keep their parameters, buffers
// and options; what torch::save writes is what a module with these two children writes. An input
// without a batch dimension goes through the two, one after the other.
class NormPReLUImpl : public torch::nn::Cloneable<NormPReLUImpl> {
 public:
  template <typename Norm, typename Activation>
  NormPReLUImpl(
      const torch::nn::ModuleHolder<Norm>& norm_, const torch::nn::ModuleHolder<Activation>& prelu_)
      : norm(register_module("norm", norm_.ptr())),
        prelu(register_module("prelu", prelu_.ptr())),
        forward_(forward_of<Norm, Activation>) {}

  torch::Tensor forward(const torch::Tensor& input) { return forward_(*norm, *prelu, input); }

  // A copy has copies of the two. (There is nothing for it to reset.)
  std::shared_ptr<torch::nn::Module> clone(
      const std::optional<torch::Device>& device = std::nullopt) const override {
    auto copy = std::make_shared<NormPReLUImpl>(*this);
    copy->norm = copy->replace_module("norm", norm->clone(device));
    copy->prelu = copy->replace_module("prelu", prelu->clone(device));
    return copy;
  }

  void reset() override {}

  void pretty_print(std::ostream& stream) const override { stream << "torch_ext::nn::NormPReLU"; }

  std::shared_ptr<torch::nn::Module> norm, prelu;

 private:
  using Forward = torch::Tensor(torch::nn::Module&, torch::nn::Module&, const torch::Tensor&);

  template <typename Norm, typename Activation>
  static torch::Tensor forward_of(
      torch::nn::Module& norm, torch::nn::Module& prelu, const torch::Tensor& input) {
    Norm& its_norm = *norm.as<Norm>();
    Activation& its_prelu = *prelu.as<Activation>();
    return is_batched(its_norm, input) ? fused(its_norm, its_prelu.weight, input)
                                       : its_prelu.forward(its_norm.forward(input));
  }

  template <size_t D, typename Norm>
  static bool is_batched(
      const torch::nn::BatchNormImplBase<D, Norm>& /*norm*/, const torch::Tensor& input) {
    return input.dim() == D + 2 || (D == 1 && input.dim() == 2);
  }

  template <size_t D, typename Norm>
  static bool is_batched(
      const torch::nn::InstanceNormImpl<D, Norm>& /*norm*/, const torch::Tensor& input) {
    return input.dim() == D + 2;
  }

  // As the norm's own forward: it counts its batches, and without a momentum averages over them.
  template <size_t D, typename Norm>
  static torch::Tensor fused(
      torch::nn::BatchNormImplBase<D, Norm>& norm,
      const torch::Tensor& slope,
      const torch::Tensor& input) {
    double momentum = norm.options.momentum().value_or(0.0);
    if (norm.is_training() && norm.options.track_running_stats()) {
      norm.num_batches_tracked += 1;
      if (!norm.options.momentum()) {
        momentum = 1.0 / norm.num_batches_tracked.template item<double>();
      }
    }
    return batch_norm_prelu(
        input, slope, norm.running_mean, norm.running_var, norm.weight, norm.bias,
        norm.is_training() || !norm.options.track_running_stats(), momentum, norm.options.eps());
  }

  template <size_t D, typename Norm>
  static torch::Tensor fused(
      torch::nn::InstanceNormImpl<D, Norm>& norm,
      const torch::Tensor& slope,
      const torch::Tensor& input) {
    return instance_norm_prelu(
        input, slope, norm.running_mean, norm.running_var, norm.weight, norm.bias,
        norm.is_training() || !norm.options.track_running_stats(), norm.options.momentum(),
        norm.options.eps());
  }

  Forward* forward_;
};

TORCH_MODULE(NormPReLU);

}  // namespace torch_ext::nn
