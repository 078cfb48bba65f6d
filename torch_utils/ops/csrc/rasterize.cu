// Z-buffer rasterizer in three passes: the nearest depth of every pixel, the smallest face index at that depth, and
// the values there. Atomic minima make the result independent of the order of threads. A group of kLanes threads
// walks the bounding box of one face.
#include "kernels_cuda.h"
#include "raster_math.h"

namespace next3d {
namespace {

// Unsigned integers in the order of the depths; the key lives in the memory of the depth itself.
NEXT3D_DEVICE uint32_t depth_key(float depth) {
  const uint32_t bits = bits_of(depth + 0.0f);  // -0 and +0 are one depth
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
NEXT3D_DEVICE unsigned long long depth_key(double depth) {
  const unsigned long long bits = bits_of(depth + 0.0);
  return bits & 0x8000000000000000ull ? ~bits : bits | 0x8000000000000000ull;
}

template <typename T>
struct KeyOf {
  using type = uint32_t;
};
template <>
struct KeyOf<double> {
  using type = unsigned long long;
};
template <typename T>
using Key = typename KeyOf<T>::type;

template <typename T>
NEXT3D_KERNEL clear_kernel(int64_t pixels, Key<T>* keys, unsigned long long* face_ids) {
  for (int64_t i = thread_index(); i < pixels; i += thread_count()) {
    keys[i] = ~Key<T>(0);
    face_ids[i] = ~0ull;  // -1 as int64
  }
}

// Pass 0 finds the depths, pass 1 the faces.
template <typename T, int pass>
NEXT3D_KERNEL cover_kernel(const T* vertices, const int64_t* faces, int64_t samples, int64_t num_vertices,
                           int64_t num_faces, int height, int width, Key<T>* keys, unsigned long long* face_ids) {
  const int lane = static_cast<int>(thread_index() % kLanes);
  Triangle<T> triangle;
  Hit<T> hit;
  for (int64_t item = thread_index() / kLanes; item < samples * num_faces; item += thread_count() / kLanes) {
    const int64_t sample = item / num_faces, face = item % num_faces;
    const T* own = vertices + 3 * sample * num_vertices;
    if (!load_triangle(own, num_vertices, faces + 3 * face, height, width, &triangle)) continue;
    const int columns = triangle.x_last - triangle.x_first + 1, rows = triangle.y_last - triangle.y_first + 1;
    for (int64_t i = lane; i < int64_t(columns) * rows; i += kLanes) {
      const int row = triangle.y_first + static_cast<int>(i / columns);
      const int column = triangle.x_first + static_cast<int>(i % columns);
      if (!shade(triangle, pixel_centre<T>(column, width), pixel_centre<T>(row, height), &hit)) continue;
      const int64_t pixel = (sample * height + row) * width + column;
      if (pass == 0) {
        atomic_min(keys + pixel, depth_key(hit.depth));
      } else if (keys[pixel] == depth_key(hit.depth)) {
        atomic_min(face_ids + pixel, static_cast<unsigned long long>(face));
      }
    }
  }
}

template <typename T>
NEXT3D_KERNEL shade_kernel(const T* vertices, const int64_t* faces, int64_t pixels, int64_t num_vertices, int height,
                           int width, const int64_t* face_ids, T* barycentrics, T* depth) {
  Triangle<T> triangle;
  for (int64_t pixel = thread_index(); pixel < pixels; pixel += thread_count()) {
    const int64_t face = face_ids[pixel], sample = pixel / (int64_t(height) * width);
    Hit<T> hit = {T(0), T(0), T(0), T(0)};
    if (face >= 0) {
      const int row = static_cast<int>(pixel / width % height), column = static_cast<int>(pixel % width);
      const T* own = vertices + 3 * sample * num_vertices;
      load_triangle(own, num_vertices, faces + 3 * face, height, width, &triangle);
      shade(triangle, pixel_centre<T>(column, width), pixel_centre<T>(row, height), &hit);
    }
    barycentrics[3 * pixel] = hit.b0;
    barycentrics[3 * pixel + 1] = hit.b1;
    barycentrics[3 * pixel + 2] = hit.b2;
    depth[pixel] = hit.depth;
  }
}

template <typename T>
NEXT3D_KERNEL backward_kernel(const T* grad_barycentrics, const T* grad_depth, const int64_t* face_ids,
                              const T* vertices, const int64_t* faces, int64_t pixels, int64_t num_vertices,
                              int64_t num_faces, int height, int width, T* grad_vertices) {
  Triangle<T> triangle;
  T gradient[3][3];
  for (int64_t pixel = thread_index(); pixel < pixels; pixel += thread_count()) {
    const int64_t face = face_ids[pixel], sample = pixel / (int64_t(height) * width);
    if (face < 0 || face >= num_faces) continue;
    const int row = static_cast<int>(pixel / width % height), column = static_cast<int>(pixel % width);
    const T* own = vertices + 3 * sample * num_vertices;
    if (!load_triangle(own, num_vertices, faces + 3 * face, height, width, &triangle)) continue;
    shade_backward(triangle, pixel_centre<T>(column, width), pixel_centre<T>(row, height),
                   grad_barycentrics + 3 * pixel, grad_depth[pixel], gradient);
    for (int corner = 0; corner < 3; ++corner) {
      T* out = grad_vertices + 3 * (sample * num_vertices + faces[3 * face + corner]);
      for (int axis = 0; axis < 3; ++axis) atomic_add(out + axis, gradient[corner][axis]);
    }
  }
}

}  // namespace

template <typename T>
void rasterize_cuda(Stream stream, const T* vertices, const int64_t* faces, int64_t samples, int64_t num_vertices,
                    int64_t num_faces, int height, int width, int64_t* face_ids, T* barycentrics, T* depth) {
  const int64_t pixels = samples * height * width, threads = samples * num_faces * kLanes;
  Key<T>* keys = reinterpret_cast<Key<T>*>(depth);
  unsigned long long* ids = reinterpret_cast<unsigned long long*>(face_ids);
  launch(clear_kernel<T>, pixels, stream, pixels, keys, ids);
  launch(cover_kernel<T, 0>, threads, stream, vertices, faces, samples, num_vertices, num_faces, height, width, keys,
         ids);
  launch(cover_kernel<T, 1>, threads, stream, vertices, faces, samples, num_vertices, num_faces, height, width, keys,
         ids);
  launch(shade_kernel<T>, pixels, stream, vertices, faces, pixels, num_vertices, height, width,
         static_cast<const int64_t*>(face_ids), barycentrics, depth);
}

template <typename T>
void rasterize_backward_cuda(Stream stream, const T* grad_barycentrics, const T* grad_depth, const int64_t* face_ids,
                             const T* vertices, const int64_t* faces, int64_t samples, int64_t num_vertices,
                             int64_t num_faces, int height, int width, T* grad_vertices) {
  const int64_t pixels = samples * height * width;
  launch(backward_kernel<T>, pixels, stream, grad_barycentrics, grad_depth, face_ids, vertices, faces, pixels,
         num_vertices, num_faces, height, width, grad_vertices);
}

#define NEXT3D_INSTANTIATE(T)                                                                                        \
  template void rasterize_cuda<T>(Stream, const T*, const int64_t*, int64_t, int64_t, int64_t, int, int, int64_t*,   \
                                  T*, T*);                                                                           \
  template void rasterize_backward_cuda<T>(Stream, const T*, const T*, const int64_t*, const T*, const int64_t*,     \
                                           int64_t, int64_t, int64_t, int, int, T*);
NEXT3D_INSTANTIATE(float)
NEXT3D_INSTANTIATE(double)
#undef NEXT3D_INSTANTIATE

}  // namespace next3d
