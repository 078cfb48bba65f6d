// Launchers of the planes' CUDA kernels; the same contracts as kernels_planes.h, plus a stream.
#pragma once

#include <cstdint>

#include "cuda_compat.h"
#include "field_math.h"
#include "planes_math.h"

namespace next3d {

template <typename T, typename A>
void sample_planes_cuda(Stream stream, const T* planes, const PlaneLayout& layout, const A* points, int64_t samples,
                        int64_t count, A scale, A gain, A* out);

template <typename A>
void sample_planes_backward_cuda(Stream stream, const A* grad, const A* points, int64_t samples, int64_t count,
                                 A scale, A gain, const PlaneLayout& layout, A* grad_planes);

template <typename T, typename A>
void sample_planes_slopes_cuda(Stream stream, const A* grad, const T* planes, const PlaneLayout& layout,
                               const A* points, int64_t samples, int64_t count, A scale, A gain, A* grad_points);

// A thread holds the channels and colours of its point, at most kMaxChannels each.
template <typename T>
void query_field_cuda(Stream stream, const T* planes, const PlaneLayout& layout, const float* points, int64_t samples,
                      int64_t count, float scale, float gain, const Mlp& mlp, float* colors, float* sigma);

}  // namespace next3d
