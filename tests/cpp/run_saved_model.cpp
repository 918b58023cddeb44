// Runs a model that Python saved and compares what it computes, bit for bit, with what it computed
// in Python. For tests/test_torchscript.py and tests/test_aot_inductor.py.
//
//   run_saved_model torchscript|aoti MODEL CASES
//
// MODEL  a TorchScript file, or an AOTInductor package.
// CASES  torch.save of a list of dictionaries of tensors: "input" and "output"; for gradients (of
//        TorchScript) "grad_output", "grad_input" and "grad_NAME" for every parameter, too.
//
// The operators are known to this program by their names in MODEL only: it includes no header of
// torch_ext and uses no symbol of it, as a server that runs any model would.
#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/script.h>
#include <torch/serialize.h>

#include <cstdlib>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace {

using Tensors = std::map<std::string, at::Tensor>;
using Model = std::function<Tensors(const Tensors& given)>;

Model load_torchscript(const std::string& path) {
  return [module = torch::jit::load(path)](const Tensors& given) mutable {
    const auto input = given.at("input").detach().requires_grad_(given.count("grad_output") > 0);
    const auto output = module.forward({input}).toTensor();
    Tensors results{{"output", output.detach()}};
    if (input.requires_grad()) {
      std::vector<std::string> names{"grad_input"};
      std::vector<at::Tensor> leaves{input};
      for (const auto& parameter : module.named_parameters()) {
        names.push_back("grad_" + parameter.name);
        leaves.push_back(parameter.value);
      }
      const auto gradients = torch::autograd::grad({output}, leaves, {given.at("grad_output")});
      for (size_t i = 0; i < names.size(); ++i) {
        results[names[i]] = gradients[i];
      }
    }
    return results;
  };
}

Model load_aot_inductor(const std::string& path) {
  auto loader = std::make_shared<torch::inductor::AOTIModelPackageLoader>(path);
  return [loader](const Tensors& given) {
    const c10::InferenceMode inference;
    return Tensors{{"output", loader->run({given.at("input")}).at(0)}};
  };
}

std::vector<Tensors> read_cases(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  const c10::IValue saved = torch::pickle_load(bytes);
  std::vector<Tensors> cases;
  for (const c10::IValue& dictionary : saved.toListRef()) {
    auto& tensors = cases.emplace_back();
    for (const auto& entry : dictionary.toGenericDict()) {
      tensors[entry.key().toStringRef()] = entry.value().toTensor();
    }
  }
  TORCH_CHECK(!cases.empty(), path, " holds no cases");
  return cases;
}

void check(const Tensors& results, const Tensors& given) {
  for (const auto& [name, expected] : given) {
    if (name == "input" || name == "grad_output") {
      continue;
    }
    TORCH_CHECK(results.count(name) == 1, "the model computes no ", name);
    TORCH_CHECK(torch::equal(results.at(name), expected), name, " differs from Python's");
    std::cout << name << " " << expected.sizes() << " is equal\n";
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::map<std::string, std::function<Model(const std::string&)>> loaders{
      {"torchscript", load_torchscript}, {"aoti", load_aot_inductor}};
  if (argc != 4 || loaders.count(argv[1]) == 0) {
    std::cerr << "usage: run_saved_model torchscript|aoti MODEL CASES\n";
    return EXIT_FAILURE;
  }
  try {
    const auto model = loaders.at(argv[1])(argv[2]);
    for (const auto& given : read_cases(argv[3])) {
      check(model(given), given);
    }
  } catch (const c10::Error& error) {
    std::cerr << error.what_without_backtrace() << "\n";
    return EXIT_FAILURE;
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return EXIT_FAILURE;
  }
  return EXIT_SUCCESS;
}
