// Reading a texture through the fragments of several views into planes; the arithmetic that CPU and CUDA share.
// A texel's centre is at u = -1 + (2 i + 1) / size; outside the texture are zeros.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace next3d {

constexpr int kMaxViews = 8;
enum Mirror { kAsIs = 0, kMirrorColumns = 1, kMirrorRows = 2 };

// Fragments are [views, samples, height, width], planes [samples, planes, height, width, channels], the texture
// [samples, texture_height, texture_width, channels]; plane slot[v] adds up view v, mirrored by mirror[v].
struct ViewsToPlanes {
  int64_t samples, num_faces, channels;
  int height, width, texture_height, texture_width;
  int views, planes;
  int slot[kMaxViews], mirror[kMaxViews];
  bool background;  // pixels without a face show the texture's centre, else nothing

  NEXT3D_HD int64_t pixels() const { return int64_t(height) * width; }
  NEXT3D_HD int64_t texels() const { return int64_t(texture_height) * texture_width; }

  // Index of the fragment that view `view` contributes to a plane's pixel (the mirror is its own inverse).
  NEXT3D_HD int64_t fragment(int view, int64_t sample, int row, int column) const {
    if (mirror[view] == kMirrorRows) row = height - 1 - row;
    if (mirror[view] == kMirrorColumns) column = width - 1 - column;
    return (view * samples + sample) * pixels() + int64_t(row) * width + column;
  }
};

// The four texels around a point and their weights; texel -1 lies outside.
template <typename T>
struct Taps {
  int64_t texel[4];
  T weight[4];
  T right, down;  // fractions towards the second column and row
};

template <typename T>
NEXT3D_HD void find_taps(T u, T v, int height, int width, Taps<T>* taps) {
  const T x = (u + T(1)) * (T(width) / T(2)) - T(0.5), y = (v + T(1)) * (T(height) / T(2)) - T(0.5);
  if (!(x > T(-1) && x < T(width) && y > T(-1) && y < T(height))) {
    for (int i = 0; i < 4; ++i) taps->texel[i] = -1, taps->weight[i] = T(0);
    taps->right = taps->down = T(0);
    return;
  }
  const T x_floor = std::floor(x), y_floor = std::floor(y);
  const int column = static_cast<int>(x_floor), row = static_cast<int>(y_floor);
  const T right = x - x_floor, down = y - y_floor, left = T(1) - right, up = T(1) - down;
  const bool columns[2] = {column >= 0, column + 1 < width}, rows[2] = {row >= 0, row + 1 < height};
  const int64_t first = int64_t(row) * width + column;
  taps->texel[0] = rows[0] && columns[0] ? first : -1;
  taps->texel[1] = rows[0] && columns[1] ? first + 1 : -1;
  taps->texel[2] = rows[1] && columns[0] ? first + width : -1;
  taps->texel[3] = rows[1] && columns[1] ? first + width + 1 : -1;
  taps->weight[0] = up * left;
  taps->weight[1] = up * right;
  taps->weight[2] = down * left;
  taps->weight[3] = down * right;
  taps->right = right;
  taps->down = down;
}

// Taps at a fragment's uv, corners [3, 2] weighted by its barycentrics.
template <typename T>
NEXT3D_HD void fragment_taps(const T* weights, const T* corners, int height, int width, Taps<T>* taps) {
  const T u = weights[0] * corners[0] + weights[1] * corners[2] + weights[2] * corners[4];
  const T v = weights[0] * corners[1] + weights[1] * corners[3] + weights[2] * corners[5];
  find_taps(u, v, height, width, taps);
}

// One channel at the taps; `texture` points at that channel of texel 0.
template <typename T>
NEXT3D_HD T read_taps(const Taps<T>& taps, const T* texture, int64_t channels) {
  T sum = T(0);
  for (int i = 0; i < 4; ++i) {
    if (taps.texel[i] >= 0) sum += texture[taps.texel[i] * channels] * taps.weight[i];
  }
  return sum;
}

// Adds the gradient of one channel with respect to (u, v), but for the factors width / 2 and height / 2.
template <typename T>
NEXT3D_HD void taps_backward(const Taps<T>& taps, T grad, const T* texture, int64_t channels, T* grad_u, T* grad_v) {
  T value[4];
  for (int i = 0; i < 4; ++i) value[i] = taps.texel[i] >= 0 ? texture[taps.texel[i] * channels] : T(0);
  *grad_u += grad * ((value[1] - value[0]) * (T(1) - taps.down) + (value[3] - value[2]) * taps.down);
  *grad_v += grad * ((value[2] - value[0]) * (T(1) - taps.right) + (value[3] - value[1]) * taps.right);
}

// Gradient of a fragment's uv (already complete) with respect to its barycentrics.
template <typename T>
NEXT3D_HD void uv_backward(T grad_u, T grad_v, const T* corners, T* grad_weights) {
  for (int i = 0; i < 3; ++i) grad_weights[i] = grad_u * corners[2 * i] + grad_v * corners[2 * i + 1];
}

}  // namespace next3d
