// Norm + PReLU on the CPU engine. Compiled once per instruction set.
#include "kernels/norm_prelu.h"

#include "kernels/cpu/engine.h"

TORCH_EXT_INSTANTIATE(torch_ext::Moments)
TORCH_EXT_INSTANTIATE(torch_ext::NormPreluForward)
TORCH_EXT_INSTANTIATE(torch_ext::WithoutOutputs<torch_ext::NormPreluReduce>)
TORCH_EXT_INSTANTIATE(torch_ext::NormPreluReduce)
TORCH_EXT_INSTANTIATE(torch_ext::WithoutSums<torch_ext::NormPreluReduce>)
TORCH_EXT_INSTANTIATE(torch_ext::NormPreluApply)
