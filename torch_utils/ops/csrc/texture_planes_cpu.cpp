// A texture through the fragments of several views into channels-last planes. Rows of planes in parallel; the texture's
// gradient is split by sample and channels, so that no result depends on the number of threads.
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "kernels_texture.h"

namespace next3d {
namespace {

constexpr int kChunk = 16;  // channels of one task of the backward pass: a cache line of floats
constexpr int kRowGrain = 8;

template <typename T, bool first>
void write_channels(const T* t0, const T* t1, const T* t2, const T* t3, const T* w, int64_t channels, T* out) {
  const T w0 = w[0], w1 = w[1], w2 = w[2], w3 = w[3];
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    const T value = t0[c] * w0 + t1[c] * w1 + t2[c] * w2 + t3[c] * w3;
    out[c] = first ? value : out[c] + value;
  }
}

// One view's value at one pixel, stored or added.
template <typename T, bool first>
void write_pixel(const Taps<T>& taps, const T* texture, int64_t channels, T* out) {
  const int64_t* at = taps.texel;
  if (std::min(std::min(at[0], at[1]), std::min(at[2], at[3])) >= 0) {
    write_channels<T, first>(texture + at[0] * channels, texture + at[1] * channels, texture + at[2] * channels,
                             texture + at[3] * channels, taps.weight, channels, out);
    return;
  }
  for (int64_t c = 0; c < channels; ++c) {
    const T value = read_taps(taps, texture + c, channels);
    out[c] = first ? value : out[c] + value;
  }
}

template <typename T, bool first>
void write_row(const ViewsToPlanes& shape, const int64_t* face_ids, const T* barycentrics, const T* face_uv,
               const T* texture, const T* background, int view, int64_t sample, int row, T* out) {
  const int64_t channels = shape.channels;
  Taps<T> taps;
  for (int column = 0; column < shape.width; ++column, out += channels) {
    const int64_t at = shape.fragment(view, sample, row, column), face = face_ids[at];
    if (face >= 0 && face < shape.num_faces) {
      fragment_taps(barycentrics + 3 * at, face_uv + 6 * face, shape.texture_height, shape.texture_width, &taps);
      write_pixel<T, first>(taps, texture, channels, out);
    } else if (first) {
      std::copy(background, background + channels, out);
    } else if (shape.background) {
      for (int64_t c = 0; c < channels; ++c) out[c] += background[c];
    }
  }
}

// Adds weight * grad to the texels of one fragment.
template <typename T>
void scatter_pixel(const Taps<T>& taps, const T* grad, int64_t channels, int count, T* grad_texture) {
  for (int i = 0; i < 4; ++i) {
    if (taps.texel[i] < 0) continue;
    const T weight = taps.weight[i];
    T* out = grad_texture + taps.texel[i] * channels;
    if (count == kChunk) {
#pragma omp simd
      for (int c = 0; c < kChunk; ++c) out[c] += weight * grad[c];
    } else {
      for (int c = 0; c < count; ++c) out[c] += weight * grad[c];
    }
  }
}

// The gradient of channels [begin, begin + count) of one sample's texture.
template <typename T>
void scatter_sample(const ViewsToPlanes& shape, const T* grad, const int64_t* face_ids, const T* barycentrics,
                    const T* face_uv, int64_t sample, int64_t begin, int count, T* grad_texture) {
  const int64_t channels = shape.channels;
  T* out = grad_texture + sample * shape.texels() * channels + begin;
  T empty[kChunk] = {};  // what the background gets
  Taps<T> taps;
  for (int view = 0; view < shape.views; ++view) {
    const int64_t plane = sample * shape.planes + shape.slot[view];
    for (int row = 0; row < shape.height; ++row) {
      const T* g = grad + (plane * shape.height + row) * shape.width * channels + begin;
      T row_empty[kChunk] = {};
      for (int column = 0; column < shape.width; ++column, g += channels) {
        const int64_t at = shape.fragment(view, sample, row, column), face = face_ids[at];
        if (face >= 0 && face < shape.num_faces) {
          fragment_taps(barycentrics + 3 * at, face_uv + 6 * face, shape.texture_height, shape.texture_width, &taps);
          scatter_pixel(taps, g, channels, count, out);
        } else if (shape.background) {
          for (int c = 0; c < count; ++c) row_empty[c] += g[c];
        }
      }
      for (int c = 0; c < count; ++c) empty[c] += row_empty[c];
    }
  }
  if (shape.background) {
    find_taps(T(0), T(0), shape.texture_height, shape.texture_width, &taps);
    scatter_pixel(taps, empty, channels, count, out);
  }
}

template <typename T>
void barycentrics_backward(const ViewsToPlanes& shape, const T* grad, const int64_t* face_ids, const T* barycentrics,
                           const T* face_uv, const T* texture, int view, int64_t sample, int row, T* grad_weights) {
  const int64_t channels = shape.channels, plane = sample * shape.planes + shape.slot[view];
  const T* g = grad + (plane * shape.height + row) * shape.width * channels;
  Taps<T> taps;
  for (int column = 0; column < shape.width; ++column, g += channels) {
    const int64_t at = shape.fragment(view, sample, row, column), face = face_ids[at];
    T* out = grad_weights + 3 * at;
    out[0] = out[1] = out[2] = T(0);
    if (face < 0 || face >= shape.num_faces) continue;
    const T* corners = face_uv + 6 * face;
    fragment_taps(barycentrics + 3 * at, corners, shape.texture_height, shape.texture_width, &taps);
    // Two dot products with one texture read at each tap: sums[i] = grad . texel i.
    T sums[4] = {};
    for (int i = 0; i < 4; ++i) {
      if (taps.texel[i] < 0) continue;
      const T* texel = texture + taps.texel[i] * channels;
      T sum = T(0);
#pragma omp simd reduction(+ : sum)
      for (int64_t c = 0; c < channels; ++c) sum += g[c] * texel[c];
      sums[i] = sum;
    }
    const T grad_u = (sums[1] - sums[0]) * (T(1) - taps.down) + (sums[3] - sums[2]) * taps.down;
    const T grad_v = (sums[2] - sums[0]) * (T(1) - taps.right) + (sums[3] - sums[1]) * taps.right;
    uv_backward(grad_u * (T(shape.texture_width) / T(2)), grad_v * (T(shape.texture_height) / T(2)), corners, out);
  }
}

}  // namespace

template <typename T>
void texture_planes_cpu(const ViewsToPlanes& shape, const int64_t* face_ids, const T* barycentrics, const T* face_uv,
                        const T* texture, T* out) {
  const int64_t channels = shape.channels;
  std::vector<T> background(shape.samples * channels, T(0));
  Taps<T> centre;
  find_taps(T(0), T(0), shape.texture_height, shape.texture_width, &centre);
  for (int64_t sample = 0; shape.background && sample < shape.samples; ++sample) {
    for (int64_t c = 0; c < channels; ++c) {
      background[sample * channels + c] = read_taps(centre, texture + sample * shape.texels() * channels + c, channels);
    }
  }
  at::parallel_for(0, shape.samples * shape.planes * shape.height, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int row = static_cast<int>(task % shape.height), plane = static_cast<int>(task / shape.height % shape.planes);
      const int64_t sample = task / shape.height / shape.planes;
      T* line = out + task * shape.width * channels;
      const T* own = texture + sample * shape.texels() * channels;
      bool first = true;
      for (int view = 0; view < shape.views; ++view) {
        if (shape.slot[view] != plane) continue;
        (first ? write_row<T, true> : write_row<T, false>)(shape, face_ids, barycentrics, face_uv, own,
                                                           background.data() + sample * channels, view, sample, row,
                                                           line);
        first = false;
      }
      if (first) std::fill(line, line + shape.width * channels, T(0));
    }
  });
}

template <typename T>
void texture_planes_backward_cpu(const ViewsToPlanes& shape, const T* grad, const int64_t* face_ids,
                                 const T* barycentrics, const T* face_uv, const T* texture, T* grad_texture,
                                 T* grad_barycentrics) {
  const int64_t chunks = (shape.channels + kChunk - 1) / kChunk;
  if (grad_texture != nullptr) {
    at::parallel_for(0, shape.samples * chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t first = task % chunks * kChunk;
        scatter_sample(shape, grad, face_ids, barycentrics, face_uv, task / chunks, first,
                       static_cast<int>(std::min<int64_t>(kChunk, shape.channels - first)), grad_texture);
      }
    });
  }
  if (grad_barycentrics == nullptr) return;
  at::parallel_for(0, shape.views * shape.samples * shape.height, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t sample = task / shape.height % shape.samples;
      barycentrics_backward(shape, grad, face_ids, barycentrics, face_uv, texture + sample * shape.texels() * shape.channels,
                            static_cast<int>(task / shape.height / shape.samples), sample,
                            static_cast<int>(task % shape.height), grad_barycentrics);
    }
  });
}

template <typename T>
void sample_mask_cpu(const int64_t* face_ids, const T* barycentrics, const T* face_uv, const T* mask, int64_t fragments,
                     int64_t num_faces, int height, int width, T* out) {
  at::parallel_for(0, fragments, 8192, [&](int64_t begin, int64_t end) {
    Taps<T> taps;
    for (int64_t at = begin; at < end; ++at) {
      const int64_t face = face_ids[at];
      out[at] = T(0);
      if (face < 0 || face >= num_faces) continue;
      fragment_taps(barycentrics + 3 * at, face_uv + 6 * face, height, width, &taps);
      out[at] = read_taps(taps, mask, 1);
    }
  });
}

#define NEXT3D_INSTANTIATE(T)                                                                                      \
  template void texture_planes_cpu<T>(const ViewsToPlanes&, const int64_t*, const T*, const T*, const T*, T*);     \
  template void texture_planes_backward_cpu<T>(const ViewsToPlanes&, const T*, const int64_t*, const T*, const T*, \
                                               const T*, T*, T*);                                                  \
  template void sample_mask_cpu<T>(const int64_t*, const T*, const T*, const T*, int64_t, int64_t, int, int, T*);
NEXT3D_INSTANTIATE(float)
NEXT3D_INSTANTIATE(double)
#undef NEXT3D_INSTANTIATE

}  // namespace next3d
