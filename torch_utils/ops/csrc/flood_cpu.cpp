// Hole fill by flooding runs of pixels, in time linear in the image; samples in parallel.
#include <ATen/Parallel.h>

#include <vector>

#include "flood_math.h"
#include "kernels_cpu.h"

namespace next3d {
namespace {

using Stack = std::vector<int64_t>;

// Pushes one pixel of every open run of row `row` that touches columns [first, last].
void push_runs(const uint8_t* state, int row, int first, int last, int width, Stack* stack) {
  const uint8_t* line = state + int64_t(row) * width;
  for (int column = first; column <= last; ++column) {
    const bool run_ends = column == last || line[column + 1] != kOpen;
    if (line[column] == kOpen && run_ends) stack->push_back(int64_t(row) * width + column);
  }
}

// Reaches everything that is connected to pixel `seed`.
void flood_from(uint8_t* state, int64_t seed, int height, int width, Stack* stack) {
  stack->push_back(seed);
  while (!stack->empty()) {
    const int64_t pixel = stack->back();
    stack->pop_back();
    if (state[pixel] != kOpen) continue;
    const int row = static_cast<int>(pixel / width);
    uint8_t* line = state + int64_t(row) * width;
    int first = static_cast<int>(pixel % width), last = first;
    while (first > 0 && line[first - 1] == kOpen) --first;
    while (last + 1 < width && line[last + 1] == kOpen) ++last;
    for (int column = first; column <= last; ++column) line[column] = kReached;
    if (row > 0) push_runs(state, row - 1, first, last, width, stack);
    if (row + 1 < height) push_runs(state, row + 1, first, last, width, stack);
  }
}

void flood_sample(uint8_t* state, int height, int width, bool guarded, Stack* stack) {
  if (!guarded) return flood_from(state, 0, height, width, stack);
  const int64_t below = int64_t(height - 1) * width;
  for (int column = 0; column < width; ++column) {
    flood_from(state, column, height, width, stack);
    flood_from(state, below + column, height, width, stack);
  }
  for (int row = 0; row < height; ++row) {
    flood_from(state, int64_t(row) * width, height, width, stack);
    flood_from(state, int64_t(row) * width + width - 1, height, width, stack);
  }
}

}  // namespace

template <typename T>
void fill_holes_cpu(const T* alpha, int64_t samples, int height, int width, bool guarded, uint8_t* state, T* out) {
  const int64_t pixels = int64_t(height) * width;
  at::parallel_for(0, samples, 1, [&](int64_t begin, int64_t end) {
    Stack stack;
    for (int64_t sample = begin; sample < end; ++sample) {
      const T* in = alpha + sample * pixels;
      uint8_t* own = state + sample * pixels;
      for (int64_t i = 0; i < pixels; ++i) own[i] = flood_state(in[i]);
      flood_sample(own, height, width, guarded, &stack);
      for (int64_t i = 0; i < pixels; ++i) out[sample * pixels + i] = own[i] == kReached ? in[i] : T(1);
    }
  });
}

template void fill_holes_cpu<float>(const float*, int64_t, int, int, bool, uint8_t*, float*);
template void fill_holes_cpu<double>(const double*, int64_t, int, int, bool, uint8_t*, double*);

}  // namespace next3d
