// The made-up operation of operations.h on the CPU engine. Compiled once per instruction set, as
// those of the library are.
#include "kernels/cpu/engine.h"
#include "operations.h"

TORCH_EXT_INSTANTIATE(torch_ext::testing_operations::Everything)
