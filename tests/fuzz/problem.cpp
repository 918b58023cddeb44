#include "problem.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <sstream>

namespace torch_ext::fuzz {
namespace {

using Bytes = FuzzedDataProvider;
using Sizes = std::vector<int64_t>;

constexpr int64_t kMostMemory = 300000;  // elements of one operand

template <typename T>
T one_of(Bytes& bytes, std::initializer_list<T> values) {
  return values.begin()[bytes.ConsumeIntegralInRange<size_t>(0, values.size() - 1)];
}

// ---- Layouts ----------------------------------------------------------------------------------

// Mostly small tensors, which are quick; some that are split over tasks and partial sums.
Sizes decode_sizes(Bytes& bytes) {
  const int64_t most = one_of<int64_t>(bytes, {40, 40, 300, 300, 2000, 2000, 9000, 80000});
  const int dims = bytes.ConsumeIntegralInRange(0, 5);
  Sizes sizes;
  int64_t numel = 1;
  for (int d = 0; d < dims; ++d) {
    const int64_t room = std::max<int64_t>(most / std::max<int64_t>(numel, 1), 1);
    const int64_t largest = one_of<int64_t>(bytes, {1, 4, 9, 65, 700, room});
    const int64_t size = bytes.ConsumeIntegralInRange<int64_t>(0, std::min(largest, room));
    // An empty tensor is one case, not most of them.
    sizes.push_back(size > 0 || bytes.ConsumeProbability<float>() < 0.05F ? size : 1);
    numel *= sizes.back();
  }
  return sizes;
}

// Dense in a random order of the dimensions, `gap` elements between neighbours and rows.
Sizes permuted_strides(Bytes& bytes, const Sizes& sizes, int64_t gap) {
  Sizes order(sizes.size());
  std::iota(order.begin(), order.end(), 0);
  for (size_t d = order.size(); d > 1; --d) {
    std::swap(order[d - 1], order[bytes.ConsumeIntegralInRange<size_t>(0, d - 1)]);
  }
  Sizes strides(sizes.size());
  int64_t next = 1 + gap;
  for (const int64_t d : order) {
    strides[d] = next;
    next = next * std::max<int64_t>(sizes[d], 1) + gap;
  }
  return strides;
}

Sizes contiguous_strides(const Sizes& sizes) {
  Sizes strides(sizes.size(), 1);
  for (size_t d = sizes.size(); d > 1; --d) {
    strides[d - 2] = strides[d - 1] * std::max<int64_t>(sizes[d - 1], 1);
  }
  return strides;
}

int64_t memory_of(const Sizes& sizes, const Sizes& strides) {
  int64_t last = 0;
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] == 0) {
      return 0;
    }
    last += (sizes[d] - 1) * strides[d];
  }
  return last + 1;
}

Sizes decode_strides(Bytes& bytes, const Sizes& sizes) {
  Sizes strides;
  switch (bytes.ConsumeIntegralInRange(0, 5)) {
    case 0:
    case 1:
      return contiguous_strides(sizes);
    case 2:
      return permuted_strides(bytes, sizes, 0);
    case 3:
      strides = permuted_strides(bytes, sizes, bytes.ConsumeIntegralInRange<int64_t>(1, 3));
      break;
    case 4:  // expanded: some dimensions have one element in memory
      strides = permuted_strides(bytes, sizes, 0);
      for (int64_t& stride : strides) {
        stride = bytes.ConsumeBool() ? 0 : stride;
      }
      break;
    default:  // anything, overlapping too
      for (size_t d = 0; d < sizes.size(); ++d) {
        strides.push_back(bytes.ConsumeIntegralInRange<int64_t>(0, 40));
      }
  }
  return memory_of(sizes, strides) <= kMostMemory ? strides : contiguous_strides(sizes);
}

// ---- Values -----------------------------------------------------------------------------------

enum class Fill { kIntegers, kReal, kConstant, kSpecial, kBits, kMaxValue = kBits };

template <typename scalar_t>
void fill(scalar_t* memory, int64_t count, Fill how, uint64_t seed) {
  using Limits = std::numeric_limits<scalar_t>;
  const scalar_t specials[] = {scalar_t(0.0F),      scalar_t(-0.0F),      Limits::infinity(),
                               -Limits::infinity(), Limits::quiet_NaN(),  Limits::max(),
                               Limits::lowest(),    Limits::min(),        -Limits::min(),
                               scalar_t(1.0F),      Limits::denorm_min(), -Limits::denorm_min(),
                               scalar_t(-1.0F)};
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<float> real(-2, 2);
  for (int64_t i = 0; i < count; ++i) {
    switch (how) {
      case Fill::kIntegers:
        memory[i] = static_cast<scalar_t>(static_cast<float>(random() % 7) - 3);
        break;
      case Fill::kReal:
        memory[i] = static_cast<scalar_t>(real(random));
        break;
      case Fill::kConstant:
        memory[i] = scalar_t(-0.3F);
        break;
      case Fill::kSpecial:  // few: most channels' sums stay finite
        memory[i] = random() % 4 == 0 ? specials[random() % std::size(specials)]
                                      : static_cast<scalar_t>(real(random));
        break;
      case Fill::kBits: {
        const uint64_t bits = random();
        std::memcpy(static_cast<void*>(memory + i), &bits, sizeof(scalar_t));
      }
    }
  }
}

void fill(void* memory, int64_t count, at::ScalarType dtype, Fill how, uint64_t seed) {
  if (dtype == at::kDouble) {
    fill(static_cast<double*>(memory), count, how, seed);
  } else if (dtype == at::kFloat) {
    fill(static_cast<float*>(memory), count, how, seed);
  } else if (dtype == at::kHalf) {
    fill(static_cast<c10::Half*>(memory), count, how, seed);
  } else if (dtype == at::kBFloat16) {
    fill(static_cast<c10::BFloat16*>(memory), count, how, seed);
  } else {
    std::memset(memory, 1, count * at::elementSize(dtype));
  }
}

// ---- Operands ---------------------------------------------------------------------------------

Operand operand(Bytes& bytes, const Sizes& sizes, at::ScalarType dtype, int64_t missing) {
  const Sizes strides = decode_strides(bytes, sizes);
  const int64_t used = memory_of(sizes, strides);
  const int64_t offset = bytes.ConsumeIntegralInRange<int64_t>(0, 9);
  const auto how = bytes.ConsumeEnum<Fill>();
  const auto seed = bytes.ConsumeIntegral<uint16_t>();
  const int64_t count = std::max<int64_t>(used + offset - missing, 0);

  Operand made;
  const size_t size = count * at::elementSize(dtype);
  made.memory.reset(static_cast<std::byte*>(std::malloc(size)));
  fill(made.memory.get(), count, dtype, how, seed);
  made.original.assign(made.memory.get(), made.memory.get() + size);
  made.tensor = at::from_blob(
      made.memory.get() + offset * at::elementSize(dtype), sizes, strides,
      at::TensorOptions().dtype(dtype));
  return made;
}

at::ScalarType decode_dtype(Bytes& bytes) {
  return one_of(
      bytes, {at::kFloat, at::kHalf, at::kBFloat16, at::kDouble, at::kFloat, at::kHalf,
              at::kBFloat16, at::kLong});
}

bool is_16_bit(at::ScalarType dtype) {
  return dtype == at::kHalf || dtype == at::kBFloat16;
}

// Wrong in a few of a hundred cases.
bool goes_wrong(Bytes& bytes) {
  return bytes.ConsumeIntegral<uint8_t>() > 250;
}

Sizes decode_weight_sizes(Bytes& bytes, const Sizes& input) {
  const int64_t channels = input.size() > 1 ? input[1] : 1;
  if (goes_wrong(bytes)) {
    const int64_t any = bytes.ConsumeIntegralInRange<int64_t>(0, 9);
    return one_of<Sizes>(bytes, {{any}, {1, 1}, {channels, 1}, {channels + 1}});
  }
  return one_of<Sizes>(bytes, {{channels}, {channels}, {channels}, {1}, {}});
}

}  // namespace

bool Operand::untouched() const {
  return original.empty() || std::memcmp(memory.get(), original.data(), original.size()) == 0;
}

Problem decode(const uint8_t* data, size_t size, int64_t missing) {
  Bytes bytes(data, size);
  Problem problem;
  const at::ScalarType dtype = decode_dtype(bytes);
  const bool mixed = is_16_bit(dtype) && bytes.ConsumeBool();
  const at::ScalarType weight_dtype = goes_wrong(bytes) ? decode_dtype(bytes)
                                      : mixed           ? at::kFloat
                                                        : dtype;
  problem.output_mask = {bytes.ConsumeBool(), bytes.ConsumeBool()};
  problem.by_autograd = bytes.ConsumeBool();
  const Sizes sizes = decode_sizes(bytes);
  const Sizes weight_sizes = decode_weight_sizes(bytes, sizes);
  const bool wrong_grad = goes_wrong(bytes);
  problem.input = operand(bytes, sizes, dtype, missing);
  problem.weight = operand(bytes, weight_sizes, weight_dtype, missing);
  problem.grad_output = operand(
      bytes, wrong_grad ? decode_sizes(bytes) : sizes, wrong_grad ? decode_dtype(bytes) : dtype,
      missing);
  return problem;
}

std::string Problem::description() const {
  std::ostringstream text;
  const auto describe = [&](const char* name, const at::Tensor& tensor) {
    text << name << ": " << tensor.scalar_type() << " " << tensor.sizes() << " strides "
         << tensor.strides()
         << ", address % 64 = " << reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 64
         << "\n";
  };
  describe("input", input.tensor);
  describe("weight", weight.tensor);
  describe("grad_output", grad_output.tensor);
  text << "output_mask " << output_mask[0] << output_mask[1] << ", by_autograd " << by_autograd;
  return text.str();
}

}  // namespace torch_ext::fuzz
