// Training: a small network with torch_ext::nn::PReLU learns to tell two spirals apart, then hands
// its state to the same network with torch::nn::PReLU, which must compute the same.
//
//   spirals
//
// Writes spirals.pt. Exits with an error if it did not learn, or if the two networks differ.
#include <torch/torch.h>
#include <torch_ext/nn.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace {

constexpr int64_t kPointsPerClass = 500;
constexpr int64_t kWidth = 24;
constexpr int kSteps = 300;
constexpr double kRequiredAccuracy = 0.95;
constexpr const char* kStateFile = "spirals.pt";

struct Points {
  torch::Tensor positions;  // (2 * kPointsPerClass, 2)
  torch::Tensor classes;    // (2 * kPointsPerClass), 0 or 1
};

// Two arms that wind around each other for one and a half turns, with some noise.
Points spirals() {
  const auto angle = torch::rand({2, kPointsPerClass}).sqrt() * (3 * M_PI);
  const auto phase = torch::tensor({0.0F, static_cast<float>(M_PI)}).view({2, 1});
  const auto radius = angle / (3 * M_PI);
  auto positions =
      torch::stack({radius * (angle + phase).cos(), radius * (angle + phase).sin()}, -1);
  positions += 0.01 * torch::randn_like(positions);
  return {positions.view({-1, 2}), torch::arange(2).repeat_interleave(kPointsPerClass)};
}

// The same network with either activation; one learned slope per hidden unit.
template <typename PReLU>
torch::nn::Sequential make_network() {
  const auto slopes = torch::nn::PReLUOptions().num_parameters(kWidth);
  return torch::nn::Sequential(
      torch::nn::Linear(2, kWidth), PReLU(slopes), torch::nn::Linear(kWidth, kWidth), PReLU(slopes),
      torch::nn::Linear(kWidth, 2));
}

void train(torch::nn::Sequential& network, const Points& points) {
  torch::optim::Adam optimizer(network->parameters(), torch::optim::AdamOptions(0.02));
  for (int step = 0; step <= kSteps; ++step) {
    optimizer.zero_grad();
    const auto loss =
        torch::nn::functional::cross_entropy(network->forward(points.positions), points.classes);
    loss.backward();
    optimizer.step();
    if (step % 50 == 0) {
      std::printf("step %3d  loss %.4f\n", step, loss.item<double>());
    }
  }
}

double accuracy(torch::nn::Sequential& network, const Points& points) {
  const torch::NoGradGuard no_grad;
  const auto predicted = network->forward(points.positions).argmax(1);
  return predicted.eq(points.classes).to(torch::kDouble).mean().item<double>();
}

void print_slopes(const torch::nn::Sequential& network) {
  for (const auto& module : network->modules()) {
    if (const auto* activation = module->as<torch_ext::nn::PReLU>()) {
      const auto& weight = activation->weight;
      std::printf(
          "slopes     %.3f ... %.3f, mean %.3f (started at %.3f)\n", weight.min().item<double>(),
          weight.max().item<double>(), weight.mean().item<double>(), activation->options.init());
    }
  }
}

bool torch_nn_computes_the_same(torch::nn::Sequential& network, const Points& points) {
  torch::save(network, kStateFile);
  auto original = make_network<torch::nn::PReLU>();
  torch::load(original, kStateFile);

  const torch::NoGradGuard no_grad;
  return torch::equal(network->forward(points.positions), original->forward(points.positions));
}

}  // namespace

int main() {
  torch::manual_seed(0);
  torch::set_num_threads(1);  // the network is too small to gain by more
  const auto seen = spirals();
  const auto unseen = spirals();

  auto network = make_network<torch_ext::nn::PReLU>();
  train(network, seen);

  const double reached = accuracy(network, unseen);
  const bool same = torch_nn_computes_the_same(network, unseen);
  std::printf("accuracy   %.1f %% of unseen points\n", 100 * reached);
  print_slopes(network);
  std::printf(
      "reloaded   %s into torch::nn::PReLU: outputs %s\n", kStateFile,
      same ? "identical" : "DIFFER");
  return reached >= kRequiredAccuracy && same ? EXIT_SUCCESS : EXIT_FAILURE;
}
