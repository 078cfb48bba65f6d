// Reading the planes at one point, for the CPU kernels that do so.
#pragma once

#include "lanes.h"
#include "planes_math.h"

namespace next3d {

constexpr int kCorners = 4, kTaps = 3 * kCorners;

// The texels that a point reads and their weights; at most kTaps.
template <typename T, typename A>
struct Taps {
  const T* texel[kTaps];
  A weight[kTaps];
  int count = 0;
};

// `planes` are those of the point's sample; weights come times `gain`.
template <typename T, typename A>
inline Taps<T, A> find_taps(const T* planes, const PlaneLayout& layout, const A* point, A scale, A gain) {
  Taps<T, A> taps;
  const int size = static_cast<int>(layout.size);
  for (int plane = 0; plane < 3; ++plane) {
    const auto f = footprint(point[column_axis(plane)] * scale, point[row_axis(plane)] * scale, size);
    if (!f.any) continue;
    for (int corner = 0; corner < kCorners; ++corner) {
      if (!corner_inside(f, corner, size)) continue;
      taps.texel[taps.count] = planes + plane * layout.plane_stride + corner_offset(f, corner, layout);
      taps.weight[taps.count++] = corner_weight(f, corner) * gain;
    }
  }
  return taps;
}

// The sum of the taps, channels [layout.channels].
template <typename T, typename A>
inline void sample_point(const T* planes, const PlaneLayout& layout, const A* point, A scale, A gain, A* out) {
  const Taps<T, A> taps = find_taps(planes, layout, point, scale, gain);
  int64_t c = 0;
  for (; c + kWidth<A> <= layout.channels; c += kWidth<A>) {
    Vector<A> sum{};
    for (int i = 0; i < taps.count; ++i) sum = multiply_add(load<A>(taps.texel[i] + c), splat(taps.weight[i]), sum);
    store(out + c, sum);
  }
  for (; c < layout.channels; ++c) {
    A sum(0);
    for (int i = 0; i < taps.count; ++i) sum += static_cast<A>(taps.texel[i][c]) * taps.weight[i];
    out[c] = sum;
  }
}

}  // namespace next3d
