// CPU kernels of the planes on raw pointers; defined in planes_cpu.cpp and field_cpu.cpp. T: type of the planes;
// A: double for double, else float.
#pragma once

#include <cstdint>

#include "field_math.h"
#include "planes_math.h"

namespace next3d {

// points [samples, count, 3] times `scale` lie in [-1, 1]; out [samples, count, channels] = `gain` times the sum of
// the three planes.
template <typename T, typename A>
void sample_planes_cpu(const T* planes, const PlaneLayout& layout, const A* points, int64_t samples, int64_t count,
                       A scale, A gain, A* out);

// Adds to grad_planes, which lies as `layout` says.
template <typename A>
void sample_planes_backward_cpu(const A* grad, const A* points, int64_t samples, int64_t count, A scale, A gain,
                                const PlaneLayout& layout, A* grad_planes);

// Writes grad_points [samples, count, 3].
template <typename T, typename A>
void sample_planes_slopes_cpu(const A* grad, const T* planes, const PlaneLayout& layout, const A* points,
                              int64_t samples, int64_t count, A scale, A gain, A* grad_points);

// sigma [samples, count] and, unless null, colors [samples, count, mlp.colors].
template <typename T>
void query_field_cpu(const T* planes, const PlaneLayout& layout, const float* points, int64_t samples, int64_t count,
                     float scale, float gain, const Mlp& mlp, float* colors, float* sigma);

}  // namespace next3d
