// Inference: runs a model that Python saved, TorchScript (.pt) or an AOTInductor package (.pt2).
//
//   run_model MODEL INPUT OUTPUT
//
// INPUT is a tensor that Python saved (torch.save), OUTPUT one that Python can load. The program
// knows the model's PReLU by name only: linking torch_ext is what makes the name known, no header
// is needed.
#include <c10/core/InferenceMode.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/script.h>
#include <torch/serialize.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

namespace {

constexpr int kTimedCalls = 10;

using Model = std::function<at::Tensor(const at::Tensor& input)>;

Model load_torchscript(const std::string& path) {
  auto module = torch::jit::load(path);
  module.eval();
  return [module](const at::Tensor& input) mutable { return module.forward({input}).toTensor(); };
}

Model load_package(const std::string& path) {
  auto loader = std::make_shared<torch::inductor::AOTIModelPackageLoader>(path);
  return [loader](const at::Tensor& input) { return loader->run({input}).at(0); };
}

Model load_model(const std::string& path) {
  return std::filesystem::path(path).extension() == ".pt2" ? load_package(path)
                                                           : load_torchscript(path);
}

at::Tensor load_tensor(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  TORCH_CHECK(file, "cannot read ", path);
  return torch::pickle_load({std::istreambuf_iterator<char>(file), {}}).toTensor();
}

void save_tensor(const at::Tensor& tensor, const std::string& path) {
  const std::vector<char> bytes = torch::pickle_save(tensor);
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  TORCH_CHECK(file.flush(), "cannot write ", path);
}

double milliseconds_per_call(const Model& model, const at::Tensor& input) {
  const auto start = std::chrono::steady_clock::now();
  for (int call = 0; call < kTimedCalls; ++call) {
    model(input);
  }
  const std::chrono::duration<double, std::milli> spent = std::chrono::steady_clock::now() - start;
  return spent.count() / kTimedCalls;
}

void run(
    const std::string& model_path, const std::string& input_path, const std::string& output_path) {
  const c10::InferenceMode inference;  // no graph is recorded: less memory, less time per call
  const Model model = load_model(model_path);
  const at::Tensor input = load_tensor(input_path);
  const at::Tensor output = model(input);  // the first call, which TorchScript optimises in
  save_tensor(output, output_path);
  std::printf(
      "%s -> %s, %.2f ms a call\n", c10::str(input.sizes()).c_str(),
      c10::str(output.sizes()).c_str(), milliseconds_per_call(model, input));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: run_model MODEL INPUT OUTPUT\n");
    return EXIT_FAILURE;
  }
  try {
    run(argv[1], argv[2], argv[3]);
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "%s\n", error.what_without_backtrace());
    return EXIT_FAILURE;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return EXIT_FAILURE;
  }
  return EXIT_SUCCESS;
}
