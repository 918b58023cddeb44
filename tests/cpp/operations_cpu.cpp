// The operations of operations.h on the CPU engine. Compiled once per instruction set, as those of
// the library are.
#include "kernels/cpu/engine.h"
#include "operations.h"

TORCH_EXT_INSTANTIATE(torch_ext::testing_operations::Everything)
TORCH_EXT_INSTANTIATE(torch_ext::testing_operations::Moments)
TORCH_EXT_INSTANTIATE(torch_ext::testing_operations::NormPreluForward)
TORCH_EXT_INSTANTIATE(torch_ext::testing_operations::NormPreluReduce<false>)
TORCH_EXT_INSTANTIATE(torch_ext::testing_operations::NormPreluReduce<true>)
TORCH_EXT_INSTANTIATE(torch_ext::testing_operations::NormPreluApply)
