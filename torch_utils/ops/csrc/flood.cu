// Hole fill: one block per sample; its threads sweep the rows, then the columns, until nothing changes.
#include "flood_math.h"
#include "kernels_cuda.h"

namespace next3d {
namespace {

template <typename T>
NEXT3D_KERNEL fill_holes_kernel(const T* alpha, int64_t samples, int height, int width, bool guarded, uint8_t* state,
                                T* out) {
  const int64_t pixels = int64_t(height) * width;
  for (int64_t sample = block_index(); sample < samples; sample += block_count()) {
    const T* in = alpha + sample * pixels;
    uint8_t* own = state + sample * pixels;
    for (int64_t i = index_in_block(); i < pixels; i += block_size()) {
      const bool seed = is_seed(static_cast<int>(i / width), static_cast<int>(i % width), height, width, guarded);
      own[i] = flood_state(in[i]) == kOpen ? (seed ? kReached : kOpen) : kClosed;
    }
    block_sync();
    bool changed = true;
    while (changed) {
      changed = false;
      for (int row = index_in_block(); row < height; row += block_size()) {
        changed |= sweep_line(own + int64_t(row) * width, 1, width);
      }
      block_sync();
      for (int column = index_in_block(); column < width; column += block_size()) {
        changed |= sweep_line(own + column, width, height);
      }
      changed = block_any(changed);
    }
    for (int64_t i = index_in_block(); i < pixels; i += block_size()) {
      out[sample * pixels + i] = own[i] == kReached ? in[i] : T(1);
    }
  }
}

}  // namespace

template <typename T>
void fill_holes_cuda(Stream stream, const T* alpha, int64_t samples, int height, int width, bool guarded,
                     uint8_t* state, T* out) {
  launch_blocks(fill_holes_kernel<T>, samples, stream, alpha, samples, height, width, guarded, state, out);
}

template void fill_holes_cuda<float>(Stream, const float*, int64_t, int, int, bool, uint8_t*, float*);
template void fill_holes_cuda<double>(Stream, const double*, int64_t, int, int, bool, uint8_t*, double*);

}  // namespace next3d
