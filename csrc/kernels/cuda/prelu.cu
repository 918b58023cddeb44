// PReLU on the CUDA engine.
#include "kernels/prelu.h"

#include "kernels/cuda/launch.cuh"

namespace torch_ext::cuda {

#define INSTANTIATE(scalar_t)                                                \
  TORCH_EXT_INSTANTIATE_RUN(PreluForward, scalar_t, NoStep)                  \
  TORCH_EXT_INSTANTIATE_RUN(PreluBackward, scalar_t, StoreSums<scalar_t, 1>) \
  TORCH_EXT_INSTANTIATE_RUN(WithoutSums<PreluBackward>, scalar_t, NoStep)
TORCH_EXT_FOR_EACH_TYPE(INSTANTIATE)

}  // namespace torch_ext::cuda
