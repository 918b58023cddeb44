// Calls the C++ interface.
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <torch/headeronly/version.h>
#include <torch_ext/prelu.h>

#include <cstdio>

int main() {
  const at::Tensor y = torch_ext::prelu(at::tensor({-1.0, 2.0}), at::full({1}, 0.25, at::kDouble));
  std::printf(
      "%g %g for torch %d.%d\n", y[0].item<double>(), y[1].item<double>(), TORCH_VERSION_MAJOR,
      TORCH_VERSION_MINOR);
}
