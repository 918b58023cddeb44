// PReLU's formulas on single numbers: worked values at compile time, every special value, and
// finite differences.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>

#include "kernels/operation.h"
#include "kernels/prelu.h"

namespace {

// Sums of single numbers, as operations add to them.
template <typename T>
struct ScalarSums {
  struct Sum {
    T& total;

    constexpr void add(T term, bool where = true) const { total += where ? term : T(0); }
    constexpr void add_product(T a, T b, bool where = true) const { add(a * b, where); }
  };

  std::array<T, 1> totals{};

  constexpr Sum operator[](int i) { return {totals[i]}; }
};

template <typename T>
constexpr T prelu(T x, T w) {
  torch_ext::NoSums none;
  return torch_ext::PreluForward::apply(std::array{x}, std::array{w}, none)[0];
}

template <typename T>
struct Gradients {
  T input, weight;
};

template <typename T>
constexpr Gradients<T> gradients(T g, T x, T w) {
  ScalarSums<T> sums;
  const auto grad_input = torch_ext::PreluBackward::apply(std::array{g, x}, std::array{w}, sums);
  return {grad_input[0], sums.totals[0]};
}

template <typename T>
constexpr T grad_input(T g, T x, T w) {
  return gradients(g, x, w).input;
}

// (The slope's gradient does not depend on the slope.)
template <typename T>
constexpr T grad_weight(T g, T x) {
  return gradients(g, x, T(0.25)).weight;
}

template <typename T>
constexpr T kInf = std::numeric_limits<T>::infinity();
template <typename T>
constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();
template <typename T>
constexpr T kMax = std::numeric_limits<T>::max();
template <typename T>
constexpr T kTiny = std::numeric_limits<T>::denorm_min();

// ---- Worked values, decided by the compiler ---------------------------------------------------

static_assert(prelu(3.0, 0.25) == 3.0);
static_assert(prelu(-2.0, 0.25) == -0.5);
static_assert(prelu(-19.0F, 0.01F) == -0.19F);
static_assert(prelu(-2.0, 0.0) == 0.0);
static_assert(prelu(0.0, 0.25) == 0.0);

static_assert(prelu(2.0, 3.0) == 2.0, "the sides are selected: max(w * x, x) would be 6");
static_assert(prelu(-2.0, 3.0) == -6.0, "the sides are selected: max(w * x, x) would be -2");
static_assert(prelu(-2.0, -1.0) == 2.0, "a negative slope turns the sign");

static_assert(grad_input(1.0, 0.8, 0.01) == 1.0);
static_assert(grad_input(1.0, -1.0, 0.01) == 0.01);
static_assert(grad_input(1.0, 0.0, 0.01) == 0.01, "the derivative at 0 is the negative side's");
static_assert(grad_input(-4.0, -1.0, 0.25) == -1.0);

static_assert(grad_weight(5.0, 2.0) == 0.0);
static_assert(grad_weight(5.0, -2.0) == -10.0);
static_assert(grad_weight(5.0, 0.0) == 0.0);

// What a plan reads of the operations.
constexpr bool same_counts(torch_ext::OperationCounts a, torch_ext::OperationCounts b) {
  return a.inputs == b.inputs && a.outputs == b.outputs && a.params == b.params && a.sums == b.sums;
}
static_assert(same_counts(torch_ext::counts_of<torch_ext::PreluForward>(), {1, 1, 1, 0}));
static_assert(same_counts(torch_ext::counts_of<torch_ext::PreluBackward>(), {2, 1, 1, 1}));
static_assert(same_counts(
    torch_ext::counts_of<torch_ext::WithoutSums<torch_ext::PreluBackward>>(), {2, 1, 1, 0}));

// ---- Special values ---------------------------------------------------------------------------

template <typename T>
class PreluOperations : public ::testing::Test {};
using Types = ::testing::Types<float, double>;
TYPED_TEST_SUITE(PreluOperations, Types);

TYPED_TEST(PreluOperations, ZeroOfEitherSignIsOnTheSideOfTheSlope) {
  using T = TypeParam;
  EXPECT_FALSE(std::signbit(prelu(T(0), T(0.25))));
  EXPECT_TRUE(std::signbit(prelu(T(-0.0), T(0.25))));
  EXPECT_TRUE(std::signbit(prelu(T(0), T(-0.25))));
  EXPECT_FALSE(std::signbit(prelu(T(-0.0), T(-0.25))));
  for (const T zero : {T(0), T(-0.0)}) {
    EXPECT_EQ(grad_input(T(8), zero, T(0.25)), T(2));
    EXPECT_EQ(grad_weight(T(8), zero), T(0));
    EXPECT_TRUE(std::isnan(grad_weight(kInf<T>, zero)));
  }
}

TYPED_TEST(PreluOperations, NegativeInputTimesSlopeZeroIsNegativeZero) {
  using T = TypeParam;
  EXPECT_EQ(prelu(T(-3), T(0)), T(0));
  EXPECT_TRUE(std::signbit(prelu(T(-3), T(0))));
}

TYPED_TEST(PreluOperations, NaNIsOnTheSideOfTheSlope) {
  using T = TypeParam;
  EXPECT_TRUE(std::isnan(prelu(kNaN<T>, T(0.25))));
  EXPECT_EQ(grad_input(T(8), kNaN<T>, T(0.25)), T(2));
  EXPECT_TRUE(std::isnan(grad_weight(T(8), kNaN<T>)));
}

TYPED_TEST(PreluOperations, InfiniteInputsKeepTheirSides) {
  using T = TypeParam;
  EXPECT_EQ(prelu(kInf<T>, T(0.25)), kInf<T>);
  EXPECT_EQ(prelu(-kInf<T>, T(0.25)), -kInf<T>);
  EXPECT_EQ(prelu(-kInf<T>, T(-0.25)), kInf<T>);
  EXPECT_TRUE(std::isnan(prelu(-kInf<T>, T(0))));
  EXPECT_EQ(grad_weight(T(2), kInf<T>), T(0));
  EXPECT_EQ(grad_weight(T(2), -kInf<T>), -kInf<T>);
}

TYPED_TEST(PreluOperations, PositiveInputsNeverSeeTheSlope) {
  using T = TypeParam;
  for (const T slope : {kInf<T>, -kInf<T>, kNaN<T>, kMax<T>}) {
    for (const T x : {kTiny<T>, T(1), kMax<T>, kInf<T>}) {
      EXPECT_EQ(prelu(x, slope), x);
      EXPECT_EQ(grad_input(T(3), x, slope), T(3));
    }
  }
}

TYPED_TEST(PreluOperations, PositiveInputsAddNothingToTheSlopesGradient) {
  using T = TypeParam;
  for (const T grad_output : {T(1), kMax<T>, kInf<T>, -kInf<T>, kNaN<T>}) {
    for (const T x : {kTiny<T>, T(1), kMax<T>, kInf<T>}) {
      EXPECT_EQ(grad_weight(grad_output, x), T(0));
    }
  }
}

TYPED_TEST(PreluOperations, NonFiniteSlopesAndGradientsReachNonPositiveInputs) {
  using T = TypeParam;
  EXPECT_EQ(prelu(T(-2), kInf<T>), -kInf<T>);
  EXPECT_TRUE(std::isnan(prelu(T(-2), kNaN<T>)));
  EXPECT_TRUE(std::isnan(prelu(T(0), kInf<T>)));
  EXPECT_EQ(grad_input(kInf<T>, T(-2), T(-1)), -kInf<T>);
  EXPECT_EQ(grad_weight(kInf<T>, T(-2)), -kInf<T>);
}

TYPED_TEST(PreluOperations, DenormalsAreKept) {
  using T = TypeParam;
  EXPECT_EQ(prelu(-4 * kTiny<T>, T(0.5)), -2 * kTiny<T>);
  EXPECT_EQ(grad_input(4 * kTiny<T>, T(-1), T(0.5)), 2 * kTiny<T>);
  EXPECT_EQ(grad_weight(T(0.5), -4 * kTiny<T>), -2 * kTiny<T>);
}

TYPED_TEST(PreluOperations, TheGradientOfTheInputDoesNotDependOnTheSums) {
  using T = TypeParam;
  using WithoutSums = torch_ext::WithoutSums<torch_ext::PreluBackward>;
  for (const T x : {T(-2), T(0), T(3), kInf<T>}) {
    torch_ext::NoSums none;
    const auto alone = WithoutSums::apply(std::array{T(8), x}, std::array{T(0.25)}, none);
    EXPECT_EQ(alone[0], grad_input(T(8), x, T(0.25)));
  }
}

// ---- Derivatives ------------------------------------------------------------------------------

constexpr std::array kSlopes = {-1.5, -0.5, 0.0, 0.25, 1.0, 2.0};
constexpr std::array kInputs = {-19.0, -2.0, -0.1, 0.1, 0.8, 3.2};  // farther from 0 than kStep
constexpr double kGradOutput = -1.75;
constexpr double kStep = 0x1p-10;

// Exact up to rounding: PReLU is linear on either side of 0, and in its slope.
template <typename Function>
double central_difference(Function function, double at) {
  return (function(at + kStep) - function(at - kStep)) / (2 * kStep);
}

TEST(PreluDerivatives, GradInputIsTheDerivativeByTheInput) {
  for (const double weight : kSlopes) {
    for (const double x : kInputs) {
      const auto loss = [&](double varied) { return kGradOutput * prelu(varied, weight); };
      EXPECT_NEAR(grad_input(kGradOutput, x, weight), central_difference(loss, x), 1e-10)
          << "x = " << x << ", weight = " << weight;
    }
  }
}

TEST(PreluDerivatives, GradWeightIsTheDerivativeByTheSlope) {
  for (const double weight : kSlopes) {
    for (const double x : kInputs) {
      const auto loss = [&](double varied) { return kGradOutput * prelu(x, varied); };
      EXPECT_NEAR(grad_weight(kGradOutput, x), central_difference(loss, weight), 1e-10)
          << "x = " << x << ", weight = " << weight;
    }
  }
}

// ---- Other element types ----------------------------------------------------------------------

// As a vector register is: a comparison gives a mask, and both have functions of their own.
struct Sides {
  bool first, second;

  friend constexpr Sides operator!(Sides a) { return {!a.first, !a.second}; }
};

struct Pair {
  double first, second;

  constexpr Pair(double a, double b) : first(a), second(b) {}
  constexpr explicit Pair(double both) : Pair(both, both) {}

  friend constexpr Pair operator*(Pair a, Pair b) {
    return {a.first * b.first, a.second * b.second};
  }
  friend constexpr Sides operator>(Pair a, Pair b) {
    return {a.first > b.first, a.second > b.second};
  }
  friend constexpr Pair select(Sides where, Pair if_true, Pair if_false) {
    return {
        where.first ? if_true.first : if_false.first,
        where.second ? if_true.second : if_false.second};
  }
};

static_assert(
    [] {
      const Pair y = prelu(Pair(2, -2), Pair(0.5));
      return y.first == 2 && y.second == -1;
    }(),
    "the same lines serve a vector");

static_assert([] {
  torch_ext::NoSums none;
  const std::array inputs{Pair(3), Pair(2, -2)};
  const Pair grad_input = torch_ext::PreluBackward::apply(inputs, std::array{Pair(0.5)}, none)[0];
  return grad_input.first == 3 && grad_input.second == 1.5;
}());

}  // namespace
