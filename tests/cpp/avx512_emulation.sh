#!/bin/sh
# The CPU engine's tests with its AVX-512 path, lane by lane (avx512_emulation.h), on a processor that has
# AVX2 only. Takes some minutes to compile.
#   tests/cpp/avx512_emulation.sh <torch's folder> <folder for the build>
set -eu
torch=$1 build=$2
cd "$(dirname "$0")/../.."
mkdir -p "$build"
flags="-std=c++20 -O1 -Icsrc -Icsrc/include -Itests/cpp -isystem $torch/include -Wno-psabi"
kernels="-ffp-contract=off -fno-trapping-math -mavx2 -mfma -mf16c"
objects=
compile() { # <name> <source> <flags>
  objects="$objects $build/$1.o"
  # shellcheck disable=SC2086
  g++ $flags $3 -c "$2" -o "$build/$1.o"
}
for source in csrc/kernels/cpu/prelu.cpp tests/cpp/operations_cpu.cpp; do
  name=$(basename "$source" .cpp)
  compile "$name-DEFAULT" "$source" "-DCPU_CAPABILITY=DEFAULT -DCPU_CAPABILITY_DEFAULT -ffp-contract=off -fno-trapping-math"
  compile "$name-AVX2" "$source" "-DCPU_CAPABILITY=AVX2 -DCPU_CAPABILITY_AVX2 $kernels"
  compile "$name-AVX512" "$source" "$kernels -Wno-ignored-attributes -include tests/cpp/avx512_emulation.h"
done
compile plan csrc/kernels/cpu/plan.cpp ""
compile instruction_sets csrc/kernels/cpu/instruction_sets.cpp "-D__builtin_cpu_supports(name)=true"
for test in tests/cpp/cpu_*_test.cpp; do
  compile "$(basename "$test" .cpp)" "$test" ""
done
# shellcheck disable=SC2086
g++ -o "$build/emulated" $objects -lgtest_main -lgtest -lpthread "$torch/lib/libc10.so" "-Wl,-rpath,$torch/lib"
"$build/emulated" --gtest_brief=1
