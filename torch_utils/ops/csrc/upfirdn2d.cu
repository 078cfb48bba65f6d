// FIR resampling, one output element per thread.
#include "kernels_cuda.h"

namespace next3d {
namespace {

template <typename T, typename A>
NEXT3D_KERNEL upfirdn2d_kernel(const T* x, const A* taps, bool correlate, A gain, int64_t planes, int64_t inner,
                               Axis rows, Axis columns, T* y) {
  const int64_t count = planes * rows.out * columns.out * inner;
  for (int64_t index = thread_index(); index < count; index += thread_count()) {
    const int64_t channel = index % inner, pixel = index / inner;
    const int column = static_cast<int>(pixel % columns.out), row = static_cast<int>(pixel / columns.out % rows.out);
    const T* plane = x + pixel / columns.out / rows.out * rows.in * columns.in * inner + channel;
    int tap_y, in_y, first_x, first_in_x;
    first_tap(rows, row, &tap_y, &in_y);
    first_tap(columns, column, &first_x, &first_in_x);
    A sum = A(0);
    for (; tap_y < rows.taps; tap_y += rows.up, ++in_y) {
      if (in_y < 0 || in_y >= rows.in) continue;
      const int tap_row = correlate ? tap_y : rows.taps - 1 - tap_y;
      for (int tap_x = first_x, in_x = first_in_x; tap_x < columns.taps; tap_x += columns.up, ++in_x) {
        if (in_x < 0 || in_x >= columns.in) continue;
        const int tap_column = correlate ? tap_x : columns.taps - 1 - tap_x;
        sum += taps[tap_row * columns.taps + tap_column] * widen(plane[(int64_t(in_y) * columns.in + in_x) * inner]);
      }
    }
    narrow(sum * gain, y + index);
  }
}

}  // namespace

template <typename T, typename A>
void upfirdn2d_cuda(Stream stream, const T* x, const A* taps, bool correlate, double gain, int64_t planes,
                    int64_t inner, const Axis& rows, const Axis& columns, T* y) {
  launch(upfirdn2d_kernel<T, A>, planes * rows.out * columns.out * inner, stream, x, taps, correlate,
         static_cast<A>(gain), planes, inner, rows, columns, y);
}

#define NEXT3D_INSTANTIATE(T, A)                                                                                \
  template void upfirdn2d_cuda<T, A>(Stream, const T*, const A*, bool, double, int64_t, int64_t, const Axis&, \
                                     const Axis&, T*);
NEXT3D_INSTANTIATE(float, float)
NEXT3D_INSTANTIATE(double, double)
NEXT3D_INSTANTIATE(Half, float)
NEXT3D_INSTANTIATE(BFloat16, float)
#undef NEXT3D_INSTANTIATE

}  // namespace next3d
