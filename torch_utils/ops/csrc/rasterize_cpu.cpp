// Z-buffer rasterizer: each task owns a band of rows of one sample and walks all faces in order, so that the result
// does not depend on the number of threads.
#include <ATen/Parallel.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels_cpu.h"
#include "raster_math.h"

namespace next3d {
namespace {

template <typename T>
struct Target {
  int64_t* face_ids;
  T* barycentrics;
  T* depth;
};

template <typename T>
void rasterize_band(const T* vertices, const int64_t* faces, int64_t num_vertices, int64_t num_faces, int height,
                    int width, int row_begin, int row_end, const T* columns, const Target<T>& out) {
  const int64_t begin = int64_t(row_begin) * width, end = int64_t(row_end) * width;
  std::fill(out.face_ids + begin, out.face_ids + end, int64_t(-1));
  std::fill(out.barycentrics + 3 * begin, out.barycentrics + 3 * end, T(0));
  std::fill(out.depth + begin, out.depth + end, std::numeric_limits<T>::infinity());
  Triangle<T> triangle;
  Hit<T> hit;
  for (int64_t face = 0; face < num_faces; ++face) {
    if (!load_triangle(vertices, num_vertices, faces + 3 * face, height, width, &triangle)) continue;
    const int first = std::max(triangle.y_first, row_begin), last = std::min(triangle.y_last, row_end - 1);
    for (int row = first; row <= last; ++row) {
      const T py = pixel_centre<T>(row, height);
      for (int column = triangle.x_first; column <= triangle.x_last; ++column) {
        if (!shade(triangle, columns[column], py, &hit)) continue;
        const int64_t pixel = int64_t(row) * width + column;
        if (!(hit.depth < out.depth[pixel])) continue;
        out.depth[pixel] = hit.depth;
        out.face_ids[pixel] = face;
        out.barycentrics[3 * pixel] = hit.b0;
        out.barycentrics[3 * pixel + 1] = hit.b1;
        out.barycentrics[3 * pixel + 2] = hit.b2;
      }
    }
  }
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    if (out.face_ids[pixel] < 0) out.depth[pixel] = T(0);
  }
}

}  // namespace

template <typename T>
void rasterize_cpu(const T* vertices, const int64_t* faces, int64_t samples, int64_t num_vertices, int64_t num_faces,
                   int height, int width, int64_t* face_ids, T* barycentrics, T* depth) {
  if (samples == 0 || height == 0 || width == 0) return;
  std::vector<T> columns(width);
  for (int column = 0; column < width; ++column) columns[column] = pixel_centre<T>(column, width);
  const int64_t threads = at::get_num_threads();
  const int64_t bands = std::min<int64_t>(height, (threads + samples - 1) / samples);
  const int64_t pixels = int64_t(height) * width;
  at::parallel_for(0, samples * bands, 1, [&](int64_t task_begin, int64_t task_end) {
    for (int64_t task = task_begin; task < task_end; ++task) {
      const int64_t sample = task / bands, band = task % bands;
      const Target<T> out{face_ids + sample * pixels, barycentrics + 3 * sample * pixels, depth + sample * pixels};
      rasterize_band(vertices + 3 * sample * num_vertices, faces, num_vertices, num_faces, height, width,
                     static_cast<int>(height * band / bands), static_cast<int>(height * (band + 1) / bands),
                     columns.data(), out);
    }
  });
}

template <typename T>
void rasterize_backward_cpu(const T* grad_barycentrics, const T* grad_depth, const int64_t* face_ids,
                            const T* vertices, const int64_t* faces, int64_t samples, int64_t num_vertices,
                            int64_t num_faces, int height, int width, T* grad_vertices) {
  const int64_t pixels = int64_t(height) * width;
  at::parallel_for(0, samples, 1, [&](int64_t begin, int64_t end) {
    Triangle<T> triangle;
    T gradient[3][3];
    for (int64_t index = begin * pixels; index < end * pixels; ++index) {
      const int64_t face = face_ids[index], sample = index / pixels;
      if (face < 0 || face >= num_faces) continue;
      const int row = static_cast<int>(index % pixels / width), column = static_cast<int>(index % width);
      const T* own = vertices + 3 * sample * num_vertices;
      if (!load_triangle(own, num_vertices, faces + 3 * face, height, width, &triangle)) continue;
      shade_backward(triangle, pixel_centre<T>(column, width), pixel_centre<T>(row, height),
                     grad_barycentrics + 3 * index, grad_depth[index], gradient);
      for (int corner = 0; corner < 3; ++corner) {
        T* row_out = grad_vertices + 3 * (sample * num_vertices + faces[3 * face + corner]);
        for (int axis = 0; axis < 3; ++axis) row_out[axis] += gradient[corner][axis];
      }
    }
  });
}

#define NEXT3D_INSTANTIATE(T)                                                                                     \
  template void rasterize_cpu<T>(const T*, const int64_t*, int64_t, int64_t, int64_t, int, int, int64_t*, T*, T*); \
  template void rasterize_backward_cpu<T>(const T*, const T*, const int64_t*, const T*, const int64_t*, int64_t,  \
                                          int64_t, int64_t, int, int, T*);
NEXT3D_INSTANTIATE(float)
NEXT3D_INSTANTIATE(double)
#undef NEXT3D_INSTANTIATE

}  // namespace next3d
