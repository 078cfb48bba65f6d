// Three planes read at world points, and the gradients of that.
#include <ATen/Parallel.h>

#include <algorithm>

#include "kernels_planes.h"
#include "planes_cpu.h"

namespace next3d {
namespace {

constexpr int64_t kGrain = 1024;  // points
constexpr int64_t kSliceBytes = 64;  // of channels: a thread's share of a texel in the gradient is one cache line

// Adds the gradients of a sample's points to channels [first, last) of one of its planes.
template <typename A>
void scatter_slice(const A* grad, const A* points, int64_t count, int plane, A scale, A gain,
                   const PlaneLayout& layout, int64_t first, int64_t last, A* grad_plane) {
  const int size = static_cast<int>(layout.size);
  for (int64_t i = 0; i < count; ++i) {
    const A* point = points + 3 * i;
    const auto f = footprint(point[column_axis(plane)] * scale, point[row_axis(plane)] * scale, size);
    if (!f.any) continue;
    const A* g = grad + i * layout.channels;
    for (int corner = 0; corner < kCorners; ++corner) {
      if (!corner_inside(f, corner, size)) continue;
      A* texel = grad_plane + corner_offset(f, corner, layout);
      const A weight = corner_weight(f, corner) * gain;
      int64_t c = first;
      for (; c + kWidth<A> <= last; c += kWidth<A>) {
        store(texel + c, multiply_add(load<A>(g + c), splat(weight), load<A>(texel + c)));
      }
      for (; c < last; ++c) texel[c] += weight * g[c];
    }
  }
}

// The derivative by a point [3] of the sampled channels times `grad`.
template <typename T, typename A>
void slope_at_point(const A* grad, const T* planes, const PlaneLayout& layout, const A* point, A scale, A gain,
                    A* grad_point) {
  const int size = static_cast<int>(layout.size);
  grad_point[0] = grad_point[1] = grad_point[2] = A(0);
  for (int plane = 0; plane < 3; ++plane) {
    const auto f = footprint(point[column_axis(plane)] * scale, point[row_axis(plane)] * scale, size);
    if (!f.any) continue;
    A by_u(0), by_v(0);
    for (int corner = 0; corner < kCorners; ++corner) {
      if (!corner_inside(f, corner, size)) continue;
      const T* texel = planes + plane * layout.plane_stride + corner_offset(f, corner, layout);
      Vector<A> sums{};
      int64_t c = 0;
      for (; c + kWidth<A> <= layout.channels; c += kWidth<A>) {
        sums = multiply_add(load<A>(texel + c), load<A>(grad + c), sums);
      }
      A dot = add_lanes<A>(sums);
      for (; c < layout.channels; ++c) dot += static_cast<A>(texel[c]) * grad[c];
      add_slope(f, corner, dot, &by_u, &by_v);
    }
    const A texels = scale * A(size) / A(2) * gain;
    grad_point[column_axis(plane)] += by_u * texels;
    grad_point[row_axis(plane)] += by_v * texels;
  }
}

}  // namespace

template <typename T, typename A>
void sample_planes_cpu(const T* planes, const PlaneLayout& layout, const A* points, int64_t samples, int64_t count,
                       A scale, A gain, A* out) {
  at::parallel_for(0, samples * count, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* own = planes + i / count * layout.sample_stride;
      sample_point(own, layout, points + 3 * i, scale, gain, out + i * layout.channels);
    }
  });
}

template <typename A>
void sample_planes_backward_cpu(const A* grad, const A* points, int64_t samples, int64_t count, A scale, A gain,
                                const PlaneLayout& layout, A* grad_planes) {
  // A thread owns a slice of channels of one plane, so the sums have one order whatever the number of threads.
  const int64_t slice = kSliceBytes / int64_t(sizeof(A)), slices = (layout.channels + slice - 1) / slice;
  at::parallel_for(0, samples * 3 * slices, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t plane = task / slices % 3, sample = task / slices / 3, first = task % slices * slice;
      scatter_slice(grad + sample * count * layout.channels, points + 3 * sample * count, count,
                    static_cast<int>(plane), scale, gain, layout, first, std::min(first + slice, layout.channels),
                    grad_planes + sample * layout.sample_stride + plane * layout.plane_stride);
    }
  });
}

template <typename T, typename A>
void sample_planes_slopes_cpu(const A* grad, const T* planes, const PlaneLayout& layout, const A* points,
                              int64_t samples, int64_t count, A scale, A gain, A* grad_points) {
  at::parallel_for(0, samples * count, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      slope_at_point(grad + i * layout.channels, planes + i / count * layout.sample_stride, layout, points + 3 * i,
                     scale, gain, grad_points + 3 * i);
    }
  });
}

#define NEXT3D_INSTANTIATE(T, A)                                                                                  \
  template void sample_planes_cpu<T, A>(const T*, const PlaneLayout&, const A*, int64_t, int64_t, A, A, A*);      \
  template void sample_planes_slopes_cpu<T, A>(const A*, const T*, const PlaneLayout&, const A*, int64_t, int64_t, \
                                               A, A, A*);
NEXT3D_INSTANTIATE(float, float)
NEXT3D_INSTANTIATE(double, double)
NEXT3D_INSTANTIATE(c10::Half, float)
NEXT3D_INSTANTIATE(c10::BFloat16, float)
#undef NEXT3D_INSTANTIATE
template void sample_planes_backward_cpu<float>(const float*, const float*, int64_t, int64_t, float, float,
                                                const PlaneLayout&, float*);
template void sample_planes_backward_cpu<double>(const double*, const double*, int64_t, int64_t, double, double,
                                                 const PlaneLayout&, double*);

}  // namespace next3d
