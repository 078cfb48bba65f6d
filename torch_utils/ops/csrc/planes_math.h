// Where a world point reads the three planes, shared by the CPU and the CUDA kernels: bilinear interpolation between
// texel centres at (i + 0.5) / size, zeros outside (grid_sample with align_corners=False).
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace next3d {

// Planes [samples, 3, channels, size, size] in memory; channels are adjacent, the other strides count elements.
struct PlaneLayout {
  int64_t channels, size;
  int64_t sample_stride, plane_stride, row_stride, column_stride;
};

// The four texels around a place in one plane, as (left, top), (right, top), (left, bottom), (right, bottom).
template <typename A>
struct Footprint {
  int column, row;  // of the first texel; -1 to size - 1
  A right, below;  // distance from it, in texels
  bool any;  // whether a texel may lie inside; if not, nothing else is set
};

// The columns and rows of the planes: (x, y), (x, z), (z, y).
NEXT3D_HD int column_axis(int plane) { return plane == 2 ? 2 : 0; }
NEXT3D_HD int row_axis(int plane) { return plane == 1 ? 2 : 1; }

// `u`, `v` in [-1, 1] across the plane. Not a number, like infinity, is outside.
template <typename A>
NEXT3D_HD Footprint<A> footprint(A u, A v, int size) {
  const A x = ((u + A(1)) * A(size) - A(1)) / A(2), y = ((v + A(1)) * A(size) - A(1)) / A(2);
  Footprint<A> f{0, 0, A(0), A(0), x > A(-1) && x < A(size) && y > A(-1) && y < A(size)};
  if (f.any) {
    const A left = std::floor(x), top = std::floor(y);
    f = {static_cast<int>(left), static_cast<int>(top), x - left, y - top, true};
  }
  return f;
}

template <typename A>
NEXT3D_HD bool corner_inside(const Footprint<A>& f, int corner, int size) {
  const int column = f.column + (corner & 1), row = f.row + (corner >> 1);
  return column >= 0 && column < size && row >= 0 && row < size;
}

template <typename A>
NEXT3D_HD A corner_weight(const Footprint<A>& f, int corner) {
  return (corner & 1 ? f.right : A(1) - f.right) * (corner & 2 ? f.below : A(1) - f.below);
}

// Adds the share of one corner to the derivatives by (u, v); `dot` is the texel times the gradient, summed.
template <typename A>
NEXT3D_HD void add_slope(const Footprint<A>& f, int corner, A dot, A* by_u, A* by_v) {
  const A along_u = corner & 2 ? f.below : A(1) - f.below, along_v = corner & 1 ? f.right : A(1) - f.right;
  *by_u += corner & 1 ? dot * along_u : -dot * along_u;
  *by_v += corner & 2 ? dot * along_v : -dot * along_v;
}

template <typename A>
NEXT3D_HD int64_t corner_offset(const Footprint<A>& f, int corner, const PlaneLayout& p) {
  return (f.row + (corner >> 1)) * p.row_stride + (f.column + (corner & 1)) * p.column_stride;
}

}  // namespace next3d
