// Programs that compute-sanitizer must find guilty, each of what one of its tools looks for, and
// innocent twins of them that it must not. `canaries KIND faulty|clean`; exits with 0 either way,
// so that the exit status of the tool tells what it found.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>

namespace {

constexpr int kThreads = 64;

// memcheck: the last thread writes one past the end.
__global__ void write_past_the_end(int* data, int extra) {
  data[threadIdx.x + extra] = static_cast<int>(threadIdx.x);
}

// racecheck: the other warp's values are read with no barrier in between.
__global__ void read_too_early(const int* in, int* out, bool wait) {
  __shared__ volatile int values[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  values[thread] = in[thread];
  if (wait) {
    __syncthreads();
  }
  out[thread] = values[kThreads - 1 - thread];
}

// initcheck: what is copied was never written.
__global__ void copy_values(const int* in, int* out) {
  out[threadIdx.x] = in[threadIdx.x];
}

// synccheck: half a warp passes a barrier by and goes on.
__global__ void pass_a_barrier_by(const int* in, int* out, int arriving) {
  __shared__ int values[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  values[thread] = in[thread];
  if (thread < arriving) {
    values[thread] += 1;
    __syncthreads();
  }
  if (thread == 0) {
    int sum = 0;
#pragma unroll 1
    for (int i = 0; i < kThreads; ++i) {
      sum += values[i];
    }
    out[0] = sum;
  }
}

bool run(const char* kind, bool faulty) {
  int* in = nullptr;
  int* out = nullptr;
  if (cudaMalloc(&in, kThreads * sizeof(int)) != cudaSuccess ||
      cudaMalloc(&out, kThreads * sizeof(int)) != cudaSuccess) {
    std::puts("canaries: no memory on the device");
    return false;
  }
  const bool initialise = !(faulty && std::strcmp(kind, "initcheck") == 0);
  if (initialise) {
    cudaMemset(in, 0, kThreads * sizeof(int));
  }
  if (std::strcmp(kind, "memcheck") == 0) {
    write_past_the_end<<<1, kThreads>>>(out, faulty ? 1 : 0);
  } else if (std::strcmp(kind, "racecheck") == 0) {
    read_too_early<<<1, kThreads>>>(in, out, !faulty);
  } else if (std::strcmp(kind, "initcheck") == 0) {
    copy_values<<<1, kThreads>>>(in, out);
  } else if (std::strcmp(kind, "synccheck") == 0) {
    pass_a_barrier_by<<<1, kThreads>>>(in, out, faulty ? kThreads - 16 : kThreads);
  } else {
    std::printf("canaries: no kind %s\n", kind);
    return false;
  }
  std::printf("%s: %s\n", kind, cudaGetErrorString(cudaDeviceSynchronize()));
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  return argc == 3 && run(argv[1], std::strcmp(argv[2], "faulty") == 0) ? 0 : 2;
}
