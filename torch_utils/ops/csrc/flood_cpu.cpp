// Flood fill by alternating sweeps over rows and columns; samples in parallel.
#include <ATen/Parallel.h>

#include "flood_math.h"
#include "kernels_cpu.h"

namespace next3d {

void flood_cpu(const uint8_t* open, int64_t samples, int height, int width, bool guarded, uint8_t* reached) {
  const int64_t pixels = int64_t(height) * width;
  at::parallel_for(0, samples, 1, [&](int64_t begin, int64_t end) {
    for (int64_t sample = begin; sample < end; ++sample) {
      const uint8_t* o = open + sample * pixels;
      uint8_t* r = reached + sample * pixels;
      for (int row = 0; row < height; ++row) {
        for (int column = 0; column < width; ++column) {
          const int64_t at = int64_t(row) * width + column;
          r[at] = o[at] && is_seed(row, column, height, width, guarded);
        }
      }
      bool changed = true;
      while (changed) {
        changed = false;
        for (int row = 0; row < height; ++row) {
          changed |= sweep_line(o + int64_t(row) * width, r + int64_t(row) * width, 1, width);
        }
        for (int column = 0; column < width; ++column) changed |= sweep_line(o + column, r + column, width, height);
      }
    }
  });
}

}  // namespace next3d
