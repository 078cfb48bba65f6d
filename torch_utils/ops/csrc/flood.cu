// Flood fill: one block per sample; its threads sweep the rows, then the columns, until nothing changes.
#include "flood_math.h"
#include "kernels_cuda.h"

namespace next3d {
namespace {

NEXT3D_KERNEL flood_kernel(const uint8_t* open, int64_t samples, int height, int width, bool guarded,
                           uint8_t* reached) {
  const int64_t pixels = int64_t(height) * width;
  for (int64_t sample = block_index(); sample < samples; sample += block_count()) {
    const uint8_t* o = open + sample * pixels;
    uint8_t* r = reached + sample * pixels;
    for (int64_t i = index_in_block(); i < pixels; i += block_size()) {
      r[i] = o[i] && is_seed(static_cast<int>(i / width), static_cast<int>(i % width), height, width, guarded);
    }
    block_sync();
    bool changed = true;
    while (changed) {
      changed = false;
      for (int row = index_in_block(); row < height; row += block_size()) {
        changed |= sweep_line(o + int64_t(row) * width, r + int64_t(row) * width, 1, width);
      }
      block_sync();
      for (int column = index_in_block(); column < width; column += block_size()) {
        changed |= sweep_line(o + column, r + column, width, height);
      }
      changed = block_any(changed);
    }
  }
}

}  // namespace

void flood_cuda(Stream stream, const uint8_t* open, int64_t samples, int height, int width, bool guarded,
                uint8_t* reached) {
  launch_blocks(flood_kernel, samples, stream, open, samples, height, width, guarded, reached);
}

}  // namespace next3d
