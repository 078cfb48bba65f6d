// A texture through the fragments of several views into channels-last planes: one thread per plane pixel and channel,
// so that neighbouring threads read neighbouring channels of a texel.
#include "kernels_cuda.h"
#include "texture_math.h"

namespace next3d {
namespace {

constexpr int64_t kParts = 256;  // partial sums of the background's gradient

template <typename T>
NEXT3D_DEVICE T view_value(const ViewsToPlanes& shape, const int64_t* face_ids, const T* barycentrics,
                           const T* face_uv, const T* texture, int64_t at) {
  Taps<T> taps;
  const int64_t face = face_ids[at];
  if (face >= 0 && face < shape.num_faces) {
    fragment_taps(barycentrics + 3 * at, face_uv + 6 * face, shape.texture_height, shape.texture_width, &taps);
  } else if (shape.background) {
    find_taps(T(0), T(0), shape.texture_height, shape.texture_width, &taps);
  } else {
    return T(0);
  }
  return read_taps(taps, texture, shape.channels);
}

template <typename T>
NEXT3D_KERNEL texture_planes_kernel(ViewsToPlanes shape, const int64_t* face_ids, const T* barycentrics,
                                    const T* face_uv, const T* texture, int64_t count, T* out) {
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    const int64_t channel = i % shape.channels, pixel = i / shape.channels % shape.pixels();
    const int64_t plane = i / shape.channels / shape.pixels(), sample = plane / shape.planes;
    const int row = static_cast<int>(pixel / shape.width), column = static_cast<int>(pixel % shape.width);
    const T* own = texture + sample * shape.texels() * shape.channels + channel;
    T sum = T(0);
    for (int view = 0; view < shape.views; ++view) {
      if (shape.slot[view] != plane % shape.planes) continue;
      sum += view_value(shape, face_ids, barycentrics, face_uv, own, shape.fragment(view, sample, row, column));
    }
    out[i] = sum;
  }
}

template <typename T>
NEXT3D_KERNEL scatter_kernel(ViewsToPlanes shape, const T* grad, const int64_t* face_ids, const T* barycentrics,
                             const T* face_uv, int64_t count, T* grad_texture) {
  Taps<T> taps;
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    const int64_t channel = i % shape.channels, pixel = i / shape.channels % shape.pixels();
    const int64_t plane = i / shape.channels / shape.pixels(), sample = plane / shape.planes;
    const int row = static_cast<int>(pixel / shape.width), column = static_cast<int>(pixel % shape.width);
    T* own = grad_texture + sample * shape.texels() * shape.channels + channel;
    for (int view = 0; view < shape.views; ++view) {
      if (shape.slot[view] != plane % shape.planes) continue;
      const int64_t at = shape.fragment(view, sample, row, column), face = face_ids[at];
      if (face < 0 || face >= shape.num_faces) continue;
      fragment_taps(barycentrics + 3 * at, face_uv + 6 * face, shape.texture_height, shape.texture_width, &taps);
      for (int tap = 0; tap < 4; ++tap) {
        if (taps.texel[tap] >= 0) atomic_add(own + taps.texel[tap] * shape.channels, taps.weight[tap] * grad[i]);
      }
    }
  }
}

// Each thread sums one channel over a share of the pixels without a face.
template <typename T>
NEXT3D_KERNEL background_kernel(ViewsToPlanes shape, const T* grad, const int64_t* face_ids, int64_t count,
                                T* grad_texture) {
  Taps<T> taps;
  find_taps(T(0), T(0), shape.texture_height, shape.texture_width, &taps);
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    const int64_t channel = i % shape.channels, part = i / shape.channels % kParts;
    const int64_t sample = i / shape.channels / kParts;
    T sum = T(0);
    for (int view = 0; view < shape.views; ++view) {
      const int64_t plane = sample * shape.planes + shape.slot[view];
      for (int64_t pixel = part; pixel < shape.pixels(); pixel += kParts) {
        const int row = static_cast<int>(pixel / shape.width), column = static_cast<int>(pixel % shape.width);
        const int64_t face = face_ids[shape.fragment(view, sample, row, column)];
        if (face < 0 || face >= shape.num_faces) {
          sum += grad[(plane * shape.pixels() + pixel) * shape.channels + channel];
        }
      }
    }
    T* own = grad_texture + sample * shape.texels() * shape.channels + channel;
    for (int tap = 0; tap < 4; ++tap) {
      if (taps.texel[tap] >= 0) atomic_add(own + taps.texel[tap] * shape.channels, taps.weight[tap] * sum);
    }
  }
}

template <typename T>
NEXT3D_KERNEL texture_barycentrics_kernel(ViewsToPlanes shape, const T* grad, const int64_t* face_ids,
                                          const T* barycentrics, const T* face_uv, const T* texture, int64_t count,
                                          T* grad_barycentrics) {
  Taps<T> taps;
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    const int64_t pixel = i % shape.pixels(), sample = i / shape.pixels() % shape.samples;
    const int view = static_cast<int>(i / shape.pixels() / shape.samples);
    const int row = static_cast<int>(pixel / shape.width), column = static_cast<int>(pixel % shape.width);
    const int64_t at = shape.fragment(view, sample, row, column), face = face_ids[at];
    T* out = grad_barycentrics + 3 * at;
    out[0] = out[1] = out[2] = T(0);
    if (face < 0 || face >= shape.num_faces) continue;
    const T* corners = face_uv + 6 * face;
    const T* own = texture + sample * shape.texels() * shape.channels;
    const int64_t plane = sample * shape.planes + shape.slot[view];
    const T* g = grad + (plane * shape.pixels() + pixel) * shape.channels;
    fragment_taps(barycentrics + 3 * at, corners, shape.texture_height, shape.texture_width, &taps);
    T grad_u = T(0), grad_v = T(0);
    for (int64_t c = 0; c < shape.channels; ++c) {
      taps_backward(taps, g[c], own + c, shape.channels, &grad_u, &grad_v);
    }
    uv_backward(grad_u * (T(shape.texture_width) / T(2)), grad_v * (T(shape.texture_height) / T(2)), corners, out);
  }
}

template <typename T>
NEXT3D_KERNEL sample_mask_kernel(const int64_t* face_ids, const T* barycentrics, const T* face_uv, const T* mask,
                                 int64_t fragments, int64_t num_faces, int height, int width, T* out) {
  Taps<T> taps;
  for (int64_t at = thread_index(); at < fragments; at += thread_count()) {
    const int64_t face = face_ids[at];
    out[at] = T(0);
    if (face < 0 || face >= num_faces) continue;
    fragment_taps(barycentrics + 3 * at, face_uv + 6 * face, height, width, &taps);
    out[at] = read_taps(taps, mask, 1);
  }
}

}  // namespace

template <typename T>
void texture_planes_cuda(Stream stream, const ViewsToPlanes& shape, const int64_t* face_ids, const T* barycentrics,
                         const T* face_uv, const T* texture, T* out) {
  const int64_t count = shape.samples * shape.planes * shape.pixels() * shape.channels;
  launch(texture_planes_kernel<T>, count, stream, shape, face_ids, barycentrics, face_uv, texture, count, out);
}

template <typename T>
void texture_planes_backward_cuda(Stream stream, const ViewsToPlanes& shape, const T* grad, const int64_t* face_ids,
                                  const T* barycentrics, const T* face_uv, const T* texture, T* grad_texture,
                                  T* grad_barycentrics) {
  if (grad_texture != nullptr) {
    const int64_t count = shape.samples * shape.planes * shape.pixels() * shape.channels;
    launch(scatter_kernel<T>, count, stream, shape, grad, face_ids, barycentrics, face_uv, count, grad_texture);
    const int64_t sums = shape.background ? shape.samples * kParts * shape.channels : 0;
    launch(background_kernel<T>, sums, stream, shape, grad, face_ids, sums, grad_texture);
  }
  if (grad_barycentrics != nullptr) {
    const int64_t count = shape.views * shape.samples * shape.pixels();
    launch(texture_barycentrics_kernel<T>, count, stream, shape, grad, face_ids, barycentrics, face_uv, texture, count,
           grad_barycentrics);
  }
}

template <typename T>
void sample_mask_cuda(Stream stream, const int64_t* face_ids, const T* barycentrics, const T* face_uv, const T* mask,
                      int64_t fragments, int64_t num_faces, int height, int width, T* out) {
  launch(sample_mask_kernel<T>, fragments, stream, face_ids, barycentrics, face_uv, mask, fragments, num_faces, height,
         width, out);
}

#define NEXT3D_INSTANTIATE(T)                                                                                         \
  template void texture_planes_cuda<T>(Stream, const ViewsToPlanes&, const int64_t*, const T*, const T*, const T*,    \
                                       T*);                                                                           \
  template void texture_planes_backward_cuda<T>(Stream, const ViewsToPlanes&, const T*, const int64_t*, const T*,     \
                                                const T*, const T*, T*, T*);                                          \
  template void sample_mask_cuda<T>(Stream, const int64_t*, const T*, const T*, const T*, int64_t, int64_t, int, int, \
                                    T*);
NEXT3D_INSTANTIATE(float)
NEXT3D_INSTANTIATE(double)
#undef NEXT3D_INSTANTIATE

}  // namespace next3d
