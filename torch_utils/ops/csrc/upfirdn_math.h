// Index arithmetic of one axis of upfirdn2d, shared by the CPU and the CUDA kernels.
#pragma once

#include "host_device.h"

namespace next3d {

// Upsample by zero insertion, pad (negative: crop), correlate, keep every `down`-th sample.
struct Axis {
  int up, down;
  int pad;  // samples before the first
  int taps;
  int in, out;
};

// The taps that meet non-zero samples at output `o`: tap, tap + up, ... < taps, at input, input + 1, ...
// `input` may lie outside [0, in).
NEXT3D_HD void first_tap(const Axis& axis, int o, int* tap, int* input) {
  const int base = o * axis.down - axis.pad;
  int remainder = (-base) % axis.up;
  if (remainder < 0) remainder += axis.up;
  *tap = remainder;
  *input = (base + remainder) / axis.up;  // exact
}

}  // namespace next3d
