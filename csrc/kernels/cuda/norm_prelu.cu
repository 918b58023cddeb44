// Norm + PReLU on the CUDA engine.
#include "kernels/norm_prelu.h"

#include "kernels/cuda/launch.cuh"
#include "kernels/norm_prelu_steps.h"

namespace torch_ext::cuda {

#define INSTANTIATE(scalar_t)                                                       \
  TORCH_EXT_INSTANTIATE_RUN(Moments, scalar_t, StatisticsFromMoments<scalar_t>)     \
  TORCH_EXT_INSTANTIATE_RUN(NormPreluForward, scalar_t, NoStep)                     \
  TORCH_EXT_INSTANTIATE_RUN(                                                        \
      WithoutOutputs<NormPreluReduce>, scalar_t, GradientsFromSums<scalar_t>)       \
  TORCH_EXT_INSTANTIATE_RUN(NormPreluReduce, scalar_t, GradientsFromSums<scalar_t>) \
  TORCH_EXT_INSTANTIATE_RUN(WithoutSums<NormPreluReduce>, scalar_t, NoStep)         \
  TORCH_EXT_INSTANTIATE_RUN(NormPreluApply, scalar_t, NoStep)                       \
  template void for_each_channel(int64_t, const BeforeMoments<scalar_t>&);          \
  template void for_each_channel(int64_t, const ParamsFromStatistics<scalar_t>&);   \
  template void add_rows(const double*, int64_t, int64_t, const StoreSums<scalar_t, 1>&);
TORCH_EXT_FOR_EACH_TYPE(INSTANTIATE)

}  // namespace torch_ext::cuda
