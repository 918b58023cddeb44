// Knows the operator by its name alone, as a program that runs saved models does.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>

#include <cstdio>

int main() {
  const auto prelu = c10::Dispatcher::singleton()
                         .findSchemaOrThrow("torch_ext::prelu", "")
                         .typed<at::Tensor(const at::Tensor&, const at::Tensor&)>();
  const at::Tensor y = prelu.call(at::tensor({-1.0, 2.0}), at::full({1}, 0.25, at::kDouble));
  std::printf("%g %g\n", y[0].item<double>(), y[1].item<double>());
}
