// The arithmetic of one triangle at one pixel, shared by the CPU and the CUDA rasterizer.
//
// Every expression is evaluated in this order without contraction to fused multiply-add
// (-ffp-contract=off, -fmad=false), so that CPU, CUDA and the PyTorch twin in rasterize.py agree bit for bit.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace next3d {

constexpr double kAreaEpsilon = 1e-8;

// Coordinate of the centre of pixel `index` of `size`, in [-1, 1].
template <typename T>
NEXT3D_HD T pixel_centre(int index, int size) {
  return T(2 * index + 1) / T(size) - T(1);
}

// Twice the signed area of (p, a, b).
template <typename T>
NEXT3D_HD T edge(T px, T py, T ax, T ay, T bx, T by) {
  return (px - ax) * (by - ay) - (py - ay) * (bx - ax);
}

template <typename T>
NEXT3D_HD T minimum(T a, T b) {
  return a < b ? a : b;
}

template <typename T>
NEXT3D_HD T maximum(T a, T b) {
  return a > b ? a : b;
}

template <typename T>
NEXT3D_HD bool is_finite(T value) {
  return value - value == T(0);
}

// Inclusive range of the pixels whose centres lie in [low, high]; empty when first > last.
template <typename T>
NEXT3D_HD void pixel_range(T low, T high, int size, int* first, int* last) {
  const T begin = std::ceil(((low + T(1)) * T(size) - T(1)) / T(2)) - T(1);
  const T end = std::floor(((high + T(1)) * T(size) - T(1)) / T(2)) + T(1);
  *first = static_cast<int>(minimum(maximum(begin, T(0)), T(size)));
  *last = static_cast<int>(maximum(minimum(end, T(size - 1)), T(-1)));
  while (*first <= *last && pixel_centre<T>(*first, size) < low) ++*first;
  while (*first <= *last && pixel_centre<T>(*last, size) > high) --*last;
}

template <typename T>
struct Triangle {
  T x0, y0, z0, x1, y1, z1, x2, y2, z2;
  T area;  // twice the signed area, plus kAreaEpsilon
  int x_first, x_last, y_first, y_last;
};

// Reads face `corners` of one sample. False for a face that can cover no pixel: an index out of range, a vertex that
// is not finite, an area of at most kAreaEpsilon (back or degenerate), or a bounding box without pixel centres.
template <typename T>
NEXT3D_HD bool load_triangle(const T* vertices, int64_t num_vertices, const int64_t* corners, int height, int width,
                             Triangle<T>* out) {
  const int64_t a = corners[0], b = corners[1], c = corners[2];
  if (a < 0 || b < 0 || c < 0 || a >= num_vertices || b >= num_vertices || c >= num_vertices) return false;
  Triangle<T>& t = *out;
  t.x0 = vertices[3 * a], t.y0 = vertices[3 * a + 1], t.z0 = vertices[3 * a + 2];
  t.x1 = vertices[3 * b], t.y1 = vertices[3 * b + 1], t.z1 = vertices[3 * b + 2];
  t.x2 = vertices[3 * c], t.y2 = vertices[3 * c + 1], t.z2 = vertices[3 * c + 2];
  const T area = edge(t.x2, t.y2, t.x0, t.y0, t.x1, t.y1);
  if (!(area > T(kAreaEpsilon)) || !is_finite(area) || !is_finite(t.z0) || !is_finite(t.z1) || !is_finite(t.z2)) {
    return false;
  }
  t.area = area + T(kAreaEpsilon);
  pixel_range(minimum(t.y0, minimum(t.y1, t.y2)), maximum(t.y0, maximum(t.y1, t.y2)), height, &t.y_first, &t.y_last);
  if (t.y_first > t.y_last) return false;
  pixel_range(minimum(t.x0, minimum(t.x1, t.x2)), maximum(t.x0, maximum(t.x1, t.x2)), width, &t.x_first, &t.x_last);
  return t.x_first <= t.x_last;
}

template <typename T>
struct Hit {
  T b0, b1, b2, depth;
};

// Barycentrics and depth at a point; false outside, on an edge, or where the depth overflows.
template <typename T>
NEXT3D_HD bool shade(const Triangle<T>& t, T px, T py, Hit<T>* hit) {
  const T e0 = edge(px, py, t.x1, t.y1, t.x2, t.y2);
  const T e1 = edge(px, py, t.x2, t.y2, t.x0, t.y0);
  const T e2 = edge(px, py, t.x0, t.y0, t.x1, t.y1);
  if (!(e0 > T(0) && e1 > T(0) && e2 > T(0))) return false;
  hit->b0 = e0 / t.area;
  hit->b1 = e1 / t.area;
  hit->b2 = e2 / t.area;
  hit->depth = hit->b0 * t.z0 + hit->b1 * t.z1 + hit->b2 * t.z2;
  return is_finite(hit->depth);
}

// Adds the gradient of edge(p, a, b) with respect to a and b, times `scale`, to gradient rows `ga` and `gb` (x, y).
template <typename T>
NEXT3D_HD void edge_backward(T scale, T px, T py, T ax, T ay, T bx, T by, T* ga, T* gb) {
  ga[0] += scale * (py - by);
  ga[1] += scale * (bx - px);
  gb[0] += scale * (ay - py);
  gb[1] += scale * (px - ax);
}

// Gradient of one covered pixel with respect to its three corners, [3][3] as (corner, coordinate).
template <typename T>
NEXT3D_HD void shade_backward(const Triangle<T>& t, T px, T py, const T* grad_barycentrics, T grad_depth,
                              T (*gradient)[3]) {
  Hit<T> hit;
  hit.b0 = edge(px, py, t.x1, t.y1, t.x2, t.y2) / t.area;
  hit.b1 = edge(px, py, t.x2, t.y2, t.x0, t.y0) / t.area;
  hit.b2 = edge(px, py, t.x0, t.y0, t.x1, t.y1) / t.area;
  const T g0 = (grad_barycentrics[0] + grad_depth * t.z0) / t.area;
  const T g1 = (grad_barycentrics[1] + grad_depth * t.z1) / t.area;
  const T g2 = (grad_barycentrics[2] + grad_depth * t.z2) / t.area;
  const T g_area = -(g0 * hit.b0 + g1 * hit.b1 + g2 * hit.b2);
  T* r0 = gradient[0];
  T* r1 = gradient[1];
  T* r2 = gradient[2];
  r0[0] = r0[1] = r1[0] = r1[1] = r2[0] = r2[1] = T(0);
  edge_backward(g0, px, py, t.x1, t.y1, t.x2, t.y2, r1, r2);
  edge_backward(g1, px, py, t.x2, t.y2, t.x0, t.y0, r2, r0);
  edge_backward(g2, px, py, t.x0, t.y0, t.x1, t.y1, r0, r1);
  edge_backward(g_area, t.x2, t.y2, t.x0, t.y0, t.x1, t.y1, r0, r1);
  r2[0] += g_area * (t.y1 - t.y0);  // the area's own first argument is corner 2
  r2[1] += g_area * (t.x0 - t.x1);
  r0[2] = grad_depth * hit.b0;
  r1[2] = grad_depth * hit.b1;
  r2[2] = grad_depth * hit.b2;
}

// One pixel's weighted sum of its face's corners [3, channels]; zeros for a null `corners` (background).
template <typename T>
NEXT3D_HD void interpolate_pixel(const T* weights, const T* corners, int64_t channels, T* out) {
  for (int64_t c = 0; c < channels; ++c) {
    out[c] = corners == nullptr ? T(0)
                                : weights[0] * corners[c] + weights[1] * corners[channels + c] +
                                      weights[2] * corners[2 * channels + c];
  }
}

// Its gradient with respect to the weights.
template <typename T>
NEXT3D_HD void interpolate_pixel_backward(const T* grad, const T* corners, int64_t channels, T* grad_weights) {
  for (int corner = 0; corner < 3; ++corner) {
    T sum = T(0);
    for (int64_t c = 0; corners != nullptr && c < channels; ++c) sum += grad[c] * corners[corner * channels + c];
    grad_weights[corner] = sum;
  }
}

}  // namespace next3d
