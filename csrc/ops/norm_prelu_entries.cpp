// batch_norm_prelu and instance_norm_prelu: which statistics the norm takes, and what becomes of
// the running ones. Written with the internal operators and PyTorch's, so that whatever PyTorch
// does with a program (compile, export, functionalize, transform) sees nothing but those.
#include <ATen/Context.h>
#include <ATen/Dispatch.h>
#include <ATen/TracerMode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/native/Lerp.h>
#include <ATen/ops/batch_norm.h>
#include <ATen/ops/instance_norm.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/library.h>
#include <torch_ext/norm_prelu.h>
#include <torch_ext/prelu.h>

#include "ops/norm_prelu.h"
#include "ops/norm_prelu_args.h"
#include "ops/tensors.h"

namespace torch_ext {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

// Another device or layout than the kernels know: PyTorch's norm serves there. (An undefined tensor
// does not count: the checks refuse it by name.)
bool any_is_foreign(
    const at::Tensor& input,
    const at::Tensor& slope,
    std::initializer_list<std::reference_wrapper<const OptionalTensor>> others) {
  const auto foreign = [](const OptionalTensor& tensor) {
    return is_defined(tensor) && !has_kernels_for(*tensor);
  };
  return foreign(input) || foreign(slope) || std::any_of(others.begin(), others.end(), foreign);
}

// Whether its values may be changed without an operator: no transform, trace or mode follows it.
bool is_unobserved(const at::Tensor& tensor) {
  constexpr c10::DispatchKeySet kPlain(
      {c10::DispatchKey::CPU, c10::DispatchKey::AutogradCPU, c10::DispatchKey::ADInplaceOrView,
       c10::DispatchKey::AutocastCPU});
  return kPlain.isSupersetOf(tensor.key_set()) && tensor.is_contiguous() &&
         !at::tracer::impl::is_dispatch_enabled() &&
         !c10::impl::TorchDispatchModeTLS::any_modes_set();
}

// running = lerp(running, factor * statistic, momentum)
void move_towards(
    const at::Tensor& running, const at::Tensor& statistic, double factor, double momentum) {
  AT_DISPATCH_FLOATING_TYPES(running.scalar_type(), "batch_norm", [&] {
    auto* const to = running.mutable_data_ptr<scalar_t>();
    const auto* const from = statistic.const_data_ptr<scalar_t>();
    for (int64_t i = 0; i < running.numel(); ++i) {
      const scalar_t target = from[i] * static_cast<scalar_t>(factor);
      to[i] = at::native::lerp(to[i], target, static_cast<scalar_t>(momentum));
    }
  });
}

// running += momentum * (statistic - running). `count` elements make a statistic: the running
// variance is the unbiased one. As PyTorch's norms do, a batch norm leaves the versions of the
// tensors as they are, and an instance norm bumps them.
void update_running(
    const OptionalTensor& running_mean,
    const OptionalTensor& running_var,
    const at::Tensor& mean,
    const at::Tensor& var,
    const c10::SymInt& count,
    double momentum,
    bool bump_versions) {
  const c10::SymFloat unbiased = c10::SymFloat(count) / c10::SymFloat(count - 1);
  const auto is_plain = [](const at::Tensor& running, const at::Tensor& statistic) {
    return is_unobserved(running) && is_unobserved(statistic) &&
           running.scalar_type() == statistic.scalar_type();
  };
  if (is_plain(tensor_of(running_mean), mean) && is_plain(tensor_of(running_var), var)) {
    // (For a small layer the five operators below would take as long as its norm.)
    move_towards(tensor_of(running_mean), mean, 1, momentum);
    move_towards(tensor_of(running_var), var, unbiased.guard_float(__FILE__, __LINE__), momentum);
    for (const OptionalTensor* running : {&running_mean, &running_var}) {
      if (bump_versions && !tensor_of(*running).is_inference()) {
        tensor_of(*running).unsafeGetTensorImpl()->bump_version();
      }
    }
    return;
  }
  const at::NoGradGuard no_grad;
  const auto update = [&](const at::Tensor& running, const at::Tensor& statistic) {
    const at::Tensor value = statistic.to(running.scalar_type()).view_as(running);
    std::optional<at::AutoDispatchBelowADInplaceOrView> keep_version;
    if (!bump_versions) {
      keep_version.emplace();
    }
    running.lerp_(value, momentum);
  };
  update(tensor_of(running_mean), mean);
  update(tensor_of(running_var), var.mul(at::Scalar(unbiased)));
}

at::Tensor batch_norm_prelu_entry(
    const at::Tensor& input,
    const at::Tensor& slope,
    const OptionalTensor& running_mean,
    const OptionalTensor& running_var,
    const OptionalTensor& weight,
    const OptionalTensor& bias,
    bool training,
    double momentum,
    double eps) {
  if (any_is_foreign(input, slope, {running_mean, running_var, weight, bias})) {
    const at::Tensor z = at::batch_norm(
        input, weight, bias, running_mean, running_var, training, momentum, eps,
        at::globalContext().userEnabledCuDNN());
    return torch_ext::prelu(z, slope);
  }
  check_batch_norm_rules(input, running_mean, running_var, training, eps);
  if (!training) {
    return norm_prelu_eval(
        input, slope, weight, bias, tensor_of(running_mean), tensor_of(running_var), eps);
  }
  auto [output, mean, var] = norm_prelu(input, slope, weight, bias, eps, /*instance=*/false);
  if (is_defined(running_mean) && input.sym_numel() != 0) {
    update_running(
        running_mean, running_var, mean, var, input.sym_numel() / input.sym_size(1), momentum,
        /*bump_versions=*/false);
  }
  return output;
}

at::Tensor instance_norm_prelu_entry(
    const at::Tensor& input,
    const at::Tensor& slope,
    const OptionalTensor& running_mean,
    const OptionalTensor& running_var,
    const OptionalTensor& weight,
    const OptionalTensor& bias,
    bool use_input_stats,
    double momentum,
    double eps) {
  if (any_is_foreign(input, slope, {running_mean, running_var, weight, bias})) {
    const at::Tensor z = at::instance_norm(
        input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps,
        at::globalContext().userEnabledCuDNN());
    return torch_ext::prelu(z, slope);
  }
  check_instance_norm_rules(input, running_mean, running_var, use_input_stats, eps);
  if (!use_input_stats) {
    // (PyTorch's instance norm takes running statistics of any type.)
    const at::ScalarType dtype = compute_dtype(input);
    return norm_prelu_eval(
        input, slope, weight, bias, tensor_of(running_mean).to(dtype),
        tensor_of(running_var).to(dtype), eps);
  }
  auto [output, mean, var] = norm_prelu(input, slope, weight, bias, eps, /*instance=*/true);
  if (is_defined(running_mean) && input.sym_numel() != 0) {
    const c10::SymInt count = input.sym_numel() / (input.sym_size(0) * input.sym_size(1));
    update_running(
        running_mean, running_var, mean.mean(0), var.mean(0), count, momentum,
        /*bump_versions=*/true);
  }
  return output;
}

}  // namespace

at::Tensor batch_norm_prelu(
    const at::Tensor& input,
    const at::Tensor& slope,
    const OptionalTensor& running_mean,
    const OptionalTensor& running_var,
    const OptionalTensor& weight,
    const OptionalTensor& bias,
    bool training,
    double momentum,
    double eps) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("torch_ext::batch_norm_prelu", "")
                             .typed<decltype(batch_norm_prelu)>();
  return op.call(input, slope, running_mean, running_var, weight, bias, training, momentum, eps);
}

at::Tensor instance_norm_prelu(
    const at::Tensor& input,
    const at::Tensor& slope,
    const OptionalTensor& running_mean,
    const OptionalTensor& running_var,
    const OptionalTensor& weight,
    const OptionalTensor& bias,
    bool use_input_stats,
    double momentum,
    double eps) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("torch_ext::instance_norm_prelu", "")
                             .typed<decltype(instance_norm_prelu)>();
  return op.call(
      input, slope, running_mean, running_var, weight, bias, use_input_stats, momentum, eps);
}

TORCH_LIBRARY_IMPL(torch_ext, CompositeImplicitAutograd, m) {
  m.impl("batch_norm_prelu", batch_norm_prelu_entry);
  m.impl("instance_norm_prelu", instance_norm_prelu_entry);
}

// torch.func's vmap and functionalize: taken apart like PyTorch's own norms.
TORCH_LIBRARY_IMPL(torch_ext, FuncTorchBatchedDecomposition, m) {
  m.impl("batch_norm_prelu", batch_norm_prelu_entry);
  m.impl("instance_norm_prelu", instance_norm_prelu_entry);
}

TORCH_LIBRARY_IMPL(torch_ext, Functionalize, m) {
  m.impl("batch_norm_prelu", batch_norm_prelu_entry);
  m.impl("instance_norm_prelu", instance_norm_prelu_entry);
}

}  // namespace torch_ext
