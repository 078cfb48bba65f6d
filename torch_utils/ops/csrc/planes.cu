// Three planes read at world points, and the gradients of that.
#include "kernels_planes_cuda.h"

namespace next3d {
namespace {

// One thread per point and channel: the threads of a warp read adjacent channels.
template <typename T, typename A>
NEXT3D_KERNEL sample_kernel(const T* planes, PlaneLayout layout, const A* points, int64_t items, int64_t count,
                            A scale, A gain, A* out) {
  const int size = static_cast<int>(layout.size);
  for (int64_t i = thread_index(); i < items; i += thread_count()) {
    const int64_t place = i / layout.channels, channel = i % layout.channels;
    const A* point = points + 3 * place;
    const T* own = planes + place / count * layout.sample_stride + channel;
    A sum(0);
    for (int plane = 0; plane < 3; ++plane) {
      const auto f = footprint(point[column_axis(plane)] * scale, point[row_axis(plane)] * scale, size);
      if (!f.any) continue;
      for (int corner = 0; corner < 4; ++corner) {
        if (!corner_inside(f, corner, size)) continue;
        const T* texel = own + plane * layout.plane_stride + corner_offset(f, corner, layout);
        sum += widen(*texel) * (corner_weight(f, corner) * gain);
      }
    }
    out[i] = sum;
  }
}

template <typename A>
NEXT3D_KERNEL sample_backward_kernel(const A* grad, const A* points, int64_t items, int64_t count, A scale, A gain,
                                     PlaneLayout layout, A* grad_planes) {
  const int size = static_cast<int>(layout.size);
  for (int64_t i = thread_index(); i < items; i += thread_count()) {
    const int64_t place = i / layout.channels, channel = i % layout.channels;
    const A* point = points + 3 * place;
    A* own = grad_planes + place / count * layout.sample_stride + channel;
    for (int plane = 0; plane < 3; ++plane) {
      const auto f = footprint(point[column_axis(plane)] * scale, point[row_axis(plane)] * scale, size);
      if (!f.any) continue;
      for (int corner = 0; corner < 4; ++corner) {
        if (!corner_inside(f, corner, size)) continue;
        atomic_add(own + plane * layout.plane_stride + corner_offset(f, corner, layout),
                   corner_weight(f, corner) * gain * grad[i]);
      }
    }
  }
}

template <typename T, typename A>
NEXT3D_KERNEL sample_slopes_kernel(const A* grad, const T* planes, PlaneLayout layout, const A* points, int64_t places,
                                   int64_t count, A scale, A gain, A* grad_points) {
  const int size = static_cast<int>(layout.size);
  for (int64_t place = thread_index(); place < places; place += thread_count()) {
    const A* point = points + 3 * place;
    const A* g = grad + place * layout.channels;
    A slope[3] = {A(0), A(0), A(0)};
    for (int plane = 0; plane < 3; ++plane) {
      const auto f = footprint(point[column_axis(plane)] * scale, point[row_axis(plane)] * scale, size);
      if (!f.any) continue;
      A by_u(0), by_v(0);
      for (int corner = 0; corner < 4; ++corner) {
        if (!corner_inside(f, corner, size)) continue;
        const T* texel = planes + place / count * layout.sample_stride + plane * layout.plane_stride +
                         corner_offset(f, corner, layout);
        A dot(0);
        for (int64_t c = 0; c < layout.channels; ++c) dot += widen(texel[c]) * g[c];
        add_slope(f, corner, dot, &by_u, &by_v);
      }
      const A texels = scale * A(size) / A(2) * gain;
      slope[column_axis(plane)] += by_u * texels;
      slope[row_axis(plane)] += by_v * texels;
    }
    for (int axis = 0; axis < 3; ++axis) grad_points[3 * place + axis] = slope[axis];
  }
}

}  // namespace

template <typename T, typename A>
void sample_planes_cuda(Stream stream, const T* planes, const PlaneLayout& layout, const A* points, int64_t samples,
                        int64_t count, A scale, A gain, A* out) {
  const int64_t items = samples * count * layout.channels;
  launch(sample_kernel<T, A>, items, stream, planes, layout, points, items, count, scale, gain, out);
}

template <typename A>
void sample_planes_backward_cuda(Stream stream, const A* grad, const A* points, int64_t samples, int64_t count,
                                 A scale, A gain, const PlaneLayout& layout, A* grad_planes) {
  const int64_t items = samples * count * layout.channels;
  launch(sample_backward_kernel<A>, items, stream, grad, points, items, count, scale, gain, layout, grad_planes);
}

template <typename T, typename A>
void sample_planes_slopes_cuda(Stream stream, const A* grad, const T* planes, const PlaneLayout& layout,
                               const A* points, int64_t samples, int64_t count, A scale, A gain, A* grad_points) {
  launch(sample_slopes_kernel<T, A>, samples * count, stream, grad, planes, layout, points, samples * count, count,
         scale, gain, grad_points);
}

#define NEXT3D_INSTANTIATE(T, A)                                                                                     \
  template void sample_planes_cuda<T, A>(Stream, const T*, const PlaneLayout&, const A*, int64_t, int64_t, A, A, A*); \
  template void sample_planes_slopes_cuda<T, A>(Stream, const A*, const T*, const PlaneLayout&, const A*, int64_t,   \
                                                int64_t, A, A, A*);
NEXT3D_INSTANTIATE(float, float)
NEXT3D_INSTANTIATE(double, double)
NEXT3D_INSTANTIATE(Half, float)
NEXT3D_INSTANTIATE(BFloat16, float)
#undef NEXT3D_INSTANTIATE
template void sample_planes_backward_cuda<float>(Stream, const float*, const float*, int64_t, int64_t, float, float,
                                                 const PlaneLayout&, float*);
template void sample_planes_backward_cuda<double>(Stream, const double*, const double*, int64_t, int64_t, double,
                                                  double, const PlaneLayout&, double*);

}  // namespace next3d
