// One line of the flood fill, shared by the CPU and the CUDA kernels.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace next3d {

// Spreads `reached` along open pixels of one line, forwards and backwards; true if any pixel was added.
NEXT3D_HD bool sweep_line(const uint8_t* open, uint8_t* reached, int64_t stride, int length) {
  bool changed = false;
  uint8_t carry = 0;
  for (int i = 0; i < length; ++i) {
    const int64_t at = i * stride;
    carry = open[at] ? (reached[at] | carry) : 0;
    changed |= carry && !reached[at];
    reached[at] = carry;
  }
  carry = 0;
  for (int i = length - 1; i >= 0; --i) {
    const int64_t at = i * stride;
    carry = open[at] ? (reached[at] | carry) : 0;
    changed |= carry && !reached[at];
    reached[at] = carry;
  }
  return changed;
}

// Whether the flood starts at this pixel: the first one, or with `guarded` every pixel of the border.
NEXT3D_HD bool is_seed(int row, int column, int height, int width, bool guarded) {
  if (guarded) return row == 0 || column == 0 || row == height - 1 || column == width - 1;
  return row == 0 && column == 0;
}

}  // namespace next3d
