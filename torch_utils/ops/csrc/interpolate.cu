// Attributes of face corners at every pixel.
#include "kernels_cuda.h"
#include "raster_math.h"

namespace next3d {
namespace {

template <typename T>
NEXT3D_KERNEL interpolate_kernel(const int64_t* face_ids, const T* barycentrics, const T* attributes, int64_t count,
                                 int64_t pixels, int64_t tables, int64_t num_faces, int64_t channels, T* out) {
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    const int64_t face = face_ids[i], table = tables == 1 ? 0 : i / pixels;
    const bool covered = face >= 0 && face < num_faces;
    const T* corners = covered ? attributes + (table * num_faces + face) * 3 * channels : nullptr;
    interpolate_pixel(barycentrics + 3 * i, corners, channels, out + i * channels);
  }
}

template <typename T>
NEXT3D_KERNEL interpolate_backward_kernel(const T* grad, const int64_t* face_ids, const T* barycentrics,
                                          const T* attributes, int64_t count, int64_t pixels, int64_t tables,
                                          int64_t num_faces, int64_t channels, T* grad_barycentrics,
                                          T* grad_attributes) {
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    const int64_t face = face_ids[i], table = tables == 1 ? 0 : i / pixels;
    const bool covered = face >= 0 && face < num_faces;
    const int64_t row = covered ? (table * num_faces + face) * 3 * channels : 0;
    interpolate_pixel_backward(grad + i * channels, covered ? attributes + row : nullptr, channels,
                               grad_barycentrics + 3 * i);
    if (!covered || grad_attributes == nullptr) continue;
    for (int corner = 0; corner < 3; ++corner) {
      const T weight = barycentrics[3 * i + corner];
      for (int64_t c = 0; c < channels; ++c) {
        atomic_add(grad_attributes + row + corner * channels + c, weight * grad[i * channels + c]);
      }
    }
  }
}

}  // namespace

template <typename T>
void interpolate_cuda(Stream stream, const int64_t* face_ids, const T* barycentrics, const T* attributes,
                      int64_t samples, int64_t pixels, int64_t tables, int64_t num_faces, int64_t channels, T* out) {
  launch(interpolate_kernel<T>, samples * pixels, stream, face_ids, barycentrics, attributes, samples * pixels,
         pixels, tables, num_faces, channels, out);
}

template <typename T>
void interpolate_backward_cuda(Stream stream, const T* grad, const int64_t* face_ids, const T* barycentrics,
                               const T* attributes, int64_t samples, int64_t pixels, int64_t tables,
                               int64_t num_faces, int64_t channels, T* grad_barycentrics, T* grad_attributes) {
  launch(interpolate_backward_kernel<T>, samples * pixels, stream, grad, face_ids, barycentrics, attributes,
         samples * pixels, pixels, tables, num_faces, channels, grad_barycentrics, grad_attributes);
}

#define NEXT3D_INSTANTIATE(T)                                                                                       \
  template void interpolate_cuda<T>(Stream, const int64_t*, const T*, const T*, int64_t, int64_t, int64_t, int64_t, \
                                    int64_t, T*);                                                                   \
  template void interpolate_backward_cuda<T>(Stream, const T*, const int64_t*, const T*, const T*, int64_t,         \
                                             int64_t, int64_t, int64_t, int64_t, T*, T*);
NEXT3D_INSTANTIATE(float)
NEXT3D_INSTANTIATE(double)
#undef NEXT3D_INSTANTIATE

}  // namespace next3d
