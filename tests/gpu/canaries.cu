// Programs that compute-sanitizer must find guilty, each of what one of its tools looks for, and
// innocent twins of them that it must not. `canaries TOOL faulty|clean`; exits with 0 either way:
// the tool's exit status tells what it found.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>

constexpr int kThreads = 64;

// memcheck: the last thread writes one past the end.
__global__ void write_past_the_end(int* data, int extra) {
  data[threadIdx.x + extra] = static_cast<int>(threadIdx.x);
}

// racecheck: the other warp's values are read with no barrier in between.
__global__ void read_too_early(const int* in, int* out, bool wait) {
  __shared__ volatile int values[kThreads];
  values[threadIdx.x] = in[threadIdx.x];
  if (wait) {
    __syncthreads();
  }
  out[threadIdx.x] = values[kThreads - 1 - threadIdx.x];
}

// initcheck: what is copied was never written.
__global__ void copy_values(const int* in, int* out) {
  out[threadIdx.x] = in[threadIdx.x];
}

// synccheck: half a warp passes a barrier by and goes on.
__global__ void pass_a_barrier_by(int* out, unsigned arriving) {
  __shared__ int values[kThreads];
  values[threadIdx.x] = 1;
  if (threadIdx.x < arriving) {
    values[threadIdx.x] += 1;
    __syncthreads();
  }
  int sum = 0;
#pragma unroll 1
  for (int i = 0; threadIdx.x == 0 && i < kThreads; ++i) {
    sum += values[i];
  }
  out[threadIdx.x] = sum;
}

int main(int argc, char** argv) {
  const auto is = [&](int i, const char* word) {
    return i < argc && std::strcmp(argv[i], word) == 0;
  };
  const bool faulty = is(2, "faulty");
  int *in = nullptr, *out = nullptr;
  cudaMalloc(&in, kThreads * sizeof(int));
  cudaMalloc(&out, kThreads * sizeof(int));
  if (!(faulty && is(1, "initcheck"))) {
    cudaMemset(in, 0, kThreads * sizeof(int));
  }
  if (is(1, "memcheck")) {
    write_past_the_end<<<1, kThreads>>>(out, faulty ? 1 : 0);
  } else if (is(1, "racecheck")) {
    read_too_early<<<1, kThreads>>>(in, out, !faulty);
  } else if (is(1, "initcheck")) {
    copy_values<<<1, kThreads>>>(in, out);
  } else if (is(1, "synccheck")) {
    pass_a_barrier_by<<<1, kThreads>>>(out, faulty ? kThreads - 16 : kThreads);
  } else {
    return 2;
  }
  std::printf("%s: %s\n", argv[1], cudaGetErrorString(cudaDeviceSynchronize()));
}
