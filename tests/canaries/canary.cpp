// canary FAULT: commits one fault, so that a checker can show that it finds such faults. The first
// two are committed inside the operators' library, through tensors that lie about their memory or
// that two threads use; the others here.
#include <torch/types.h>
#include <torch_ext/prelu.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <thread>

namespace {

constexpr int64_t kSize = 100;

// A tensor with one element more than there is memory.
void read_past_the_end() {
  auto* values = static_cast<float*>(std::calloc(kSize, sizeof(float)));
  const auto weight = torch::ones({1});
  torch_ext::prelu(at::from_blob(values, {kSize + 1}, at::kFloat), weight);
  std::free(values);
}

// One thread writes what the operator reads in another.
void race() {
  const auto input = torch::ones({kSize});
  const auto weight = torch::ones({1});
  std::jthread writer([values = input.mutable_data_ptr<float>()](const std::stop_token& stop) {
    for (int64_t round = 0; !stop.stop_requested(); ++round) {
      values[round % kSize] = -1;
    }
  });
  for (int round = 0; round < 1000; ++round) {
    torch_ext::prelu(input, weight);
  }
}

void overflow() {
  volatile int largest = std::numeric_limits<int>::max();
  std::printf("%d\n", largest + 1);
}

void leak() {
  for (int i = 0; i < 10; ++i) {
    static_cast<char*>(std::malloc(1000))[0] = 1;
  }
}

const std::map<std::string, std::function<void()>> kFaults = {
    {"read-past-the-end", read_past_the_end},
    {"race", race},
    {"overflow", overflow},
    {"leak", leak},
};

}  // namespace

int main(int, char** arguments) {
  kFaults.at(arguments[1])();
}
