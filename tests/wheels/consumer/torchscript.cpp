// Runs a TorchScript file that holds the operator.
#include <torch/script.h>

#include <cstdio>

int main(int, char** argv) {
  const at::Tensor y = torch::jit::load(argv[1]).forward({at::tensor({-1.0F, 2.0F})}).toTensor();
  std::printf("%g %g\n", y[0].item<double>(), y[1].item<double>());
}
