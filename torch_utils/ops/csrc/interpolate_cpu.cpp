// Attributes of face corners at every pixel.
#include <ATen/Parallel.h>

#include "kernels_cpu.h"
#include "raster_math.h"

namespace next3d {
namespace {

constexpr int64_t kGrain = 8192;

// The corners of a pixel's face, or null.
template <typename T>
const T* corners_of(const T* attributes, int64_t face, int64_t table, int64_t num_faces, int64_t channels) {
  return face < 0 || face >= num_faces ? nullptr : attributes + (table * num_faces + face) * 3 * channels;
}

}  // namespace

template <typename T>
void interpolate_cpu(const int64_t* face_ids, const T* barycentrics, const T* attributes, int64_t samples,
                     int64_t pixels, int64_t tables, int64_t num_faces, int64_t channels, T* out) {
  at::parallel_for(0, samples * pixels, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* corners = corners_of(attributes, face_ids[i], tables == 1 ? 0 : i / pixels, num_faces, channels);
      interpolate_pixel(barycentrics + 3 * i, corners, channels, out + i * channels);
    }
  });
}

template <typename T>
void interpolate_backward_cpu(const T* grad, const int64_t* face_ids, const T* barycentrics, const T* attributes,
                              int64_t samples, int64_t pixels, int64_t tables, int64_t num_faces, int64_t channels,
                              T* grad_barycentrics, T* grad_attributes) {
  at::parallel_for(0, samples * pixels, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* corners = corners_of(attributes, face_ids[i], tables == 1 ? 0 : i / pixels, num_faces, channels);
      interpolate_pixel_backward(grad + i * channels, corners, channels, grad_barycentrics + 3 * i);
    }
  });
  if (grad_attributes == nullptr) return;
  // Pixels share faces: one thread per table keeps the sums exact and in one order.
  const int64_t span = tables == 1 ? samples * pixels : pixels;
  at::parallel_for(0, tables, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * span; i < end * span; ++i) {
      const int64_t face = face_ids[i];
      if (face < 0 || face >= num_faces) continue;
      T* row = grad_attributes + (i / span * num_faces + face) * 3 * channels;
      for (int corner = 0; corner < 3; ++corner) {
        const T weight = barycentrics[3 * i + corner];
        for (int64_t c = 0; c < channels; ++c) row[corner * channels + c] += weight * grad[i * channels + c];
      }
    }
  });
}

#define NEXT3D_INSTANTIATE(T)                                                                                      \
  template void interpolate_cpu<T>(const int64_t*, const T*, const T*, int64_t, int64_t, int64_t, int64_t, int64_t, \
                                   T*);                                                                            \
  template void interpolate_backward_cpu<T>(const T*, const int64_t*, const T*, const T*, int64_t, int64_t, int64_t, \
                                            int64_t, int64_t, T*, T*);
NEXT3D_INSTANTIATE(float)
NEXT3D_INSTANTIATE(double)
#undef NEXT3D_INSTANTIATE

}  // namespace next3d
