// The rules of the hole fill and one line of its flood, shared by the CPU and the CUDA kernels.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace next3d {

enum FloodState : uint8_t { kClosed = 0, kOpen = 1, kReached = 2 };

// Whether the flood can pass a pixel.
template <typename T>
NEXT3D_HD uint8_t flood_state(T alpha) {
  const T level = alpha * T(255);
  return level >= T(0) && level <= T(254) ? kOpen : kClosed;
}

// Spreads the flood along one line, forwards and backwards; true if any pixel was reached.
NEXT3D_HD bool sweep_line(uint8_t* state, int64_t stride, int length) {
  bool changed = false;
  for (int pass = 0; pass < 2; ++pass) {
    bool carry = false;
    for (int i = 0; i < length; ++i) {
      uint8_t& pixel = state[(pass == 0 ? i : length - 1 - i) * stride];
      if (pixel == kOpen && carry) pixel = kReached, changed = true;
      carry = pixel == kReached;
    }
  }
  return changed;
}

// Whether the flood starts at this pixel: the first one, or with `guarded` every pixel of the border.
NEXT3D_HD bool is_seed(int row, int column, int height, int width, bool guarded) {
  if (guarded) return row == 0 || column == 0 || row == height - 1 || column == width - 1;
  return row == 0 && column == 0;
}

}  // namespace next3d
