// PReLU on the CPU engine. Compiled once per instruction set.
#include "kernels/prelu.h"

#include "kernels/cpu/engine.h"

TORCH_EXT_INSTANTIATE(torch_ext::PreluForward)
TORCH_EXT_INSTANTIATE(torch_ext::PreluBackward)
TORCH_EXT_INSTANTIATE(torch_ext::WithoutSums<torch_ext::PreluBackward>)
