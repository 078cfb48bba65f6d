// What the CUDA kernels use of CUDA; the kernels themselves never mention torch. With NEXT3D_EMULATE_CUDA the same
// names run a kernel on the CPU, one thread after another, so that its arithmetic is tested where there is no GPU.
#pragma once

#include <cstdint>

#ifndef NEXT3D_EMULATE_CUDA

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

namespace next3d {

using Half = __half;
using BFloat16 = __nv_bfloat16;
using Stream = cudaStream_t;

}  // namespace next3d

#ifdef __CUDACC__  // the rest is not for host compilers

#define NEXT3D_KERNEL __global__ void
#define NEXT3D_DEVICE __device__ __forceinline__

namespace next3d {

constexpr int kThreads = 256;
constexpr int kLanes = 32;

NEXT3D_DEVICE int64_t thread_index() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
NEXT3D_DEVICE int64_t thread_count() { return int64_t(gridDim.x) * blockDim.x; }
NEXT3D_DEVICE int block_index() { return blockIdx.x; }
NEXT3D_DEVICE int block_count() { return gridDim.x; }
NEXT3D_DEVICE int index_in_block() { return threadIdx.x; }
NEXT3D_DEVICE int block_size() { return blockDim.x; }
NEXT3D_DEVICE void block_sync() { __syncthreads(); }
NEXT3D_DEVICE bool block_any(bool value) { return __syncthreads_or(value) != 0; }
NEXT3D_DEVICE uint32_t bits_of(float value) { return __float_as_uint(value); }
NEXT3D_DEVICE unsigned long long bits_of(double value) { return __double_as_longlong(value); }

template <typename T>
NEXT3D_DEVICE void atomic_min(T* at, T value) {
  atomicMin(at, value);
}
template <typename T>
NEXT3D_DEVICE void atomic_add(T* at, T value) {
  atomicAdd(at, value);
}

NEXT3D_DEVICE float widen(Half value) { return __half2float(value); }
NEXT3D_DEVICE float widen(BFloat16 value) { return __bfloat162float(value); }
NEXT3D_DEVICE float widen(float value) { return value; }
NEXT3D_DEVICE double widen(double value) { return value; }
NEXT3D_DEVICE void narrow(float value, Half* out) { *out = __float2half(value); }
NEXT3D_DEVICE void narrow(float value, BFloat16* out) { *out = __float2bfloat16(value); }
NEXT3D_DEVICE void narrow(float value, float* out) { *out = value; }
NEXT3D_DEVICE void narrow(double value, double* out) { *out = value; }

// Runs a kernel whose threads share `items` by striding; enough blocks to fill a device, at most one item a thread.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t items, Stream stream, Arguments... arguments) {
  const int64_t blocks = (items + kThreads - 1) / kThreads;
  if (blocks > 0) {
    kernel<<<static_cast<unsigned>(blocks < (1 << 20) ? blocks : (1 << 20)), kThreads, 0, stream>>>(arguments...);
  }
}

// Runs a kernel whose blocks share `items` by striding and whose threads cooperate on each.
template <typename... Parameters, typename... Arguments>
void launch_blocks(void (*kernel)(Parameters...), int64_t items, Stream stream, Arguments... arguments) {
  if (items > 0) {
    kernel<<<static_cast<unsigned>(items < (1 << 20) ? items : (1 << 20)), kThreads, 0, stream>>>(arguments...);
  }
}

}  // namespace next3d

#endif  // __CUDACC__

#else  // NEXT3D_EMULATE_CUDA

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstring>

#define NEXT3D_KERNEL inline void
#define NEXT3D_DEVICE inline

namespace next3d {

using Half = c10::Half;
using BFloat16 = c10::BFloat16;
using Stream = void*;

constexpr int kLanes = 4;
constexpr int64_t kEmulatedThreads = 12;
inline int64_t emulated_thread = 0, emulated_threads = 1;

inline int64_t thread_index() { return emulated_thread; }
inline int64_t thread_count() { return emulated_threads; }
inline int block_index() { return 0; }
inline int block_count() { return 1; }
inline int index_in_block() { return 0; }
inline int block_size() { return 1; }
inline void block_sync() {}
inline bool block_any(bool value) { return value; }
inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
inline unsigned long long bits_of(double value) {
  unsigned long long bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

template <typename T>
void atomic_min(T* at, T value) {
  if (value < *at) *at = value;
}
template <typename T>
void atomic_add(T* at, T value) {
  *at += value;
}

inline float widen(Half value) { return value; }
inline float widen(BFloat16 value) { return value; }
inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
template <typename A, typename T>
void narrow(A value, T* out) {
  *out = static_cast<T>(value);
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t, Stream, Arguments... arguments) {
  emulated_threads = kEmulatedThreads;
  for (emulated_thread = 0; emulated_thread < emulated_threads; ++emulated_thread) kernel(arguments...);
}

template <typename... Parameters, typename... Arguments>
void launch_blocks(void (*kernel)(Parameters...), int64_t, Stream, Arguments... arguments) {
  kernel(arguments...);
}

}  // namespace next3d

#endif  // NEXT3D_EMULATE_CUDA
