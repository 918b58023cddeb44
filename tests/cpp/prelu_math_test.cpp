// The formulas of one element, without torch: against finite differences, at every special value,
// and at compile time.
#include "kernels/prelu_math.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>

namespace {

using torch_ext::math::prelu;
using torch_ext::math::prelu_grad_input;
using torch_ext::math::prelu_grad_weight;

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

static_assert(prelu_grad_input(1.0, 0.8, 0.01) == 1.0);
static_assert(prelu_grad_input(1.0, -1.0, 0.01) == 0.01);
static_assert(
    prelu_grad_input(1.0, 0.0, 0.01) == 0.01, "the derivative at 0 is the negative side's");
static_assert(prelu_grad_input(-4.0, -1.0, 0.25) == -1.0);

static_assert(prelu_grad_weight(5.0, 2.0) == 0.0);
static_assert(prelu_grad_weight(5.0, -2.0) == -10.0);
static_assert(prelu_grad_weight(5.0, 0.0) == 0.0);

// ---- Special values ---------------------------------------------------------------------------

template <typename T>
class PreluMathTest : public ::testing::Test {};
using Types = ::testing::Types<float, double>;
TYPED_TEST_SUITE(PreluMathTest, Types);

TYPED_TEST(PreluMathTest, ZeroOfEitherSignIsOnTheSideOfTheSlope) {
  using T = TypeParam;
  EXPECT_FALSE(std::signbit(prelu(T(0), T(0.25))));
  EXPECT_TRUE(std::signbit(prelu(T(-0.0), T(0.25))));
  EXPECT_TRUE(std::signbit(prelu(T(0), T(-0.25))));
  EXPECT_FALSE(std::signbit(prelu(T(-0.0), T(-0.25))));
  for (const T zero : {T(0), T(-0.0)}) {
    EXPECT_EQ(prelu_grad_input(T(8), zero, T(0.25)), T(2));
    EXPECT_EQ(prelu_grad_weight(T(8), zero), T(0));
    EXPECT_TRUE(std::isnan(prelu_grad_weight(kInf<T>, zero)));
  }
}

TYPED_TEST(PreluMathTest, NegativeInputTimesSlopeZeroIsNegativeZero) {
  using T = TypeParam;
  EXPECT_EQ(prelu(T(-3), T(0)), T(0));
  EXPECT_TRUE(std::signbit(prelu(T(-3), T(0))));
}

TYPED_TEST(PreluMathTest, NaNIsOnTheSideOfTheSlope) {
  using T = TypeParam;
  EXPECT_TRUE(std::isnan(prelu(kNaN<T>, T(0.25))));
  EXPECT_EQ(prelu_grad_input(T(8), kNaN<T>, T(0.25)), T(2));
  EXPECT_TRUE(std::isnan(prelu_grad_weight(T(8), kNaN<T>)));
}

TYPED_TEST(PreluMathTest, InfiniteInputsKeepTheirSides) {
  using T = TypeParam;
  EXPECT_EQ(prelu(kInf<T>, T(0.25)), kInf<T>);
  EXPECT_EQ(prelu(-kInf<T>, T(0.25)), -kInf<T>);
  EXPECT_EQ(prelu(-kInf<T>, T(-0.25)), kInf<T>);
  EXPECT_TRUE(std::isnan(prelu(-kInf<T>, T(0))));
  EXPECT_EQ(prelu_grad_weight(T(2), kInf<T>), T(0));
  EXPECT_EQ(prelu_grad_weight(T(2), -kInf<T>), -kInf<T>);
}

TYPED_TEST(PreluMathTest, PositiveInputsNeverSeeTheSlope) {
  using T = TypeParam;
  for (const T slope : {kInf<T>, -kInf<T>, kNaN<T>, kMax<T>}) {
    for (const T x : {kTiny<T>, T(1), kMax<T>, kInf<T>}) {
      EXPECT_EQ(prelu(x, slope), x);
      EXPECT_EQ(prelu_grad_input(T(3), x, slope), T(3));
    }
  }
}

TYPED_TEST(PreluMathTest, PositiveInputsAddNothingToTheSlopesGradient) {
  using T = TypeParam;
  for (const T grad_output : {T(1), kMax<T>, kInf<T>, -kInf<T>, kNaN<T>}) {
    for (const T x : {kTiny<T>, T(1), kMax<T>, kInf<T>}) {
      EXPECT_EQ(prelu_grad_weight(grad_output, x), T(0));
    }
  }
}

TYPED_TEST(PreluMathTest, NonFiniteSlopesAndGradientsReachNonPositiveInputs) {
  using T = TypeParam;
  EXPECT_EQ(prelu(T(-2), kInf<T>), -kInf<T>);
  EXPECT_TRUE(std::isnan(prelu(T(-2), kNaN<T>)));
  EXPECT_TRUE(std::isnan(prelu(T(0), kInf<T>)));
  EXPECT_EQ(prelu_grad_input(kInf<T>, T(-2), T(-1)), -kInf<T>);
  EXPECT_EQ(prelu_grad_weight(kInf<T>, T(-2)), -kInf<T>);
}

TYPED_TEST(PreluMathTest, DenormalsAreKept) {
  using T = TypeParam;
  EXPECT_EQ(prelu(-4 * kTiny<T>, T(0.5)), -2 * kTiny<T>);
  EXPECT_EQ(prelu_grad_input(4 * kTiny<T>, T(-1), T(0.5)), 2 * kTiny<T>);
  EXPECT_EQ(prelu_grad_weight(T(0.5), -4 * kTiny<T>), -2 * kTiny<T>);
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

TEST(PreluMath, GradInputIsTheDerivativeByTheInput) {
  for (const double weight : kSlopes) {
    for (const double x : kInputs) {
      const auto loss = [&](double varied) { return kGradOutput * prelu(varied, weight); };
      EXPECT_NEAR(prelu_grad_input(kGradOutput, x, weight), central_difference(loss, x), 1e-10)
          << "x = " << x << ", weight = " << weight;
    }
  }
}

TEST(PreluMath, GradWeightIsTheDerivativeByTheSlope) {
  for (const double weight : kSlopes) {
    for (const double x : kInputs) {
      const auto loss = [&](double varied) { return kGradOutput * prelu(x, varied); };
      EXPECT_NEAR(prelu_grad_weight(kGradOutput, x), central_difference(loss, weight), 1e-10)
          << "x = " << x << ", weight = " << weight;
    }
  }
}

// ---- Other element types ----------------------------------------------------------------------

// As a vector of a SIMD unit would be: it has no operator> that gives a bool.
struct Pair {
  double first, second;

  friend constexpr Pair operator*(Pair a, Pair b) {
    return {a.first * b.first, a.second * b.second};
  }
};

}  // namespace

template <>
struct torch_ext::math::Select<Pair> {
  static constexpr Pair by_sign(Pair x, Pair if_positive, Pair otherwise) {
    return {
        x.first > 0 ? if_positive.first : otherwise.first,
        x.second > 0 ? if_positive.second : otherwise.second};
  }
};

namespace {

TEST(PreluMath, TheSameLinesServeAVectorWithItsOwnSelect) {
  constexpr Pair y = prelu(Pair{2, -2}, Pair{0.5, 0.5});
  static_assert(y.first == 2 && y.second == -1);
  constexpr Pair grad_input = prelu_grad_input(Pair{3, 3}, Pair{2, -2}, Pair{0.5, 0.5});
  static_assert(grad_input.first == 3 && grad_input.second == 1.5);
}

}  // namespace
