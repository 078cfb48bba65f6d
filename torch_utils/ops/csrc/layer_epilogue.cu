// The epilogue of a StyleGAN2 layer, one output element per thread; sums go over fixed strips of pixels first.
#include "kernels_cuda.h"

namespace next3d {
namespace {

// Sample, channel and pixel of an element of y.
struct Element {
  int64_t sample, channel, pixel;
};

NEXT3D_DEVICE Element element_of(const EpilogueSizes& sizes, int64_t index) {
  const int64_t pixels = sizes.pixels(), channels = sizes.channels;
  if (sizes.channels_last) return {index / channels / pixels, index % channels, index / channels % pixels};
  return {index / pixels / channels, index / pixels % channels, index % pixels};
}

template <typename T, typename A>
NEXT3D_DEVICE A filtered(const T* x, const A* taps, const EpilogueSizes& sizes, const Element& of) {
  const int row = static_cast<int>(of.pixel / sizes.width), column = static_cast<int>(of.pixel % sizes.width);
  const int64_t in_pixels = int64_t(sizes.in_height) * sizes.in_width;
  const int64_t step = sizes.channels_last ? sizes.channels : 1;
  const T* image = sizes.channels_last ? x + of.sample * in_pixels * sizes.channels + of.channel
                                       : x + (of.sample * sizes.channels + of.channel) * in_pixels;
  A sum = A(0);
  for (int j = 0; j < kEpilogueTaps; ++j) {
    const int in_column = column - 1 + j;
    if (in_column < 0 || in_column >= sizes.in_width) continue;
    A vertical = A(0);
    for (int i = 0; i < kEpilogueTaps; ++i) {
      const int in_row = row - 1 + i;
      if (in_row < 0 || in_row >= sizes.in_height) continue;
      const int64_t at = int64_t(in_row) * sizes.in_width + in_column;
      vertical += taps[kEpilogueTaps - 1 - i] * widen(image[at * step]);
    }
    sum += taps[kEpilogueTaps - 1 - j] * vertical;
  }
  return sum;
}

template <typename T, typename A>
NEXT3D_KERNEL epilogue_kernel(const T* x, const A* taps, const A* scale, const A* noise, const A* bias,
                              EpilogueSizes sizes, EpilogueParams<A> params, int64_t count, T* y) {
  for (int64_t index = thread_index(); index < count; index += thread_count()) {
    const Element of = element_of(sizes, index);
    A value = taps == nullptr ? widen(x[index]) : filtered(x, taps, sizes, of);
    if (scale != nullptr) value *= scale[of.sample * sizes.channels + of.channel];
    if (noise != nullptr) value += noise[sizes.noise_offset(of.sample) + of.pixel];
    narrow(leaky(value + bias[of.channel], params), y + index);
  }
}

// One channel of one strip of pixels per thread, neighbouring channels in neighbouring threads.
template <typename T, typename A>
NEXT3D_KERNEL epilogue_backward_kernel(const T* grad, const T* y, const A* scale, const A* noise, const A* bias,
                                       EpilogueSizes sizes, EpilogueParams<A> params, int64_t count, T* grad_filtered,
                                       A* strip_sums) {
  const int64_t pixels = sizes.pixels(), strips = sizes.strips(), channels = sizes.channels;
  for (int64_t index = thread_index(); index < count; index += thread_count()) {
    const int64_t channel = index % channels, strip = index / channels % strips, sample = index / channels / strips;
    const int64_t first = strip * kStripPixels, last = first + kStripPixels < pixels ? first + kStripPixels : pixels;
    const A factor = scale != nullptr ? scale[sample * channels + channel] : A(1);
    const A* shift = noise != nullptr ? noise + sizes.noise_offset(sample) : nullptr;
    A by_bias = A(0), by_scale = A(0);
    for (int64_t pixel = first; pixel < last; ++pixel) {
      const int64_t at = sizes.at(sample, channel, pixel);
      const A value = widen(y[at]);
      const A g = widen(grad[at]) * leaky_slope(value, params);
      if (grad_filtered != nullptr) narrow(g * factor, grad_filtered + at);
      by_bias += g;
      by_scale += g * ((leaky_argument(value, params) - (shift != nullptr ? shift[pixel] : A(0))) - bias[channel]);
    }
    A* sums = strip_sums + (sample * strips + strip) * 2 * channels + channel;
    sums[0] = by_bias;
    sums[channels] = by_scale;
  }
}

template <typename T, typename A>
NEXT3D_KERNEL noise_kernel(const T* grad, const T* y, EpilogueSizes sizes, EpilogueParams<A> params, int64_t count,
                           A* grad_noise) {
  for (int64_t index = thread_index(); index < count; index += thread_count()) {
    A sum = A(0);
    for (int64_t channel = 0; channel < sizes.channels; ++channel) {
      const int64_t at = sizes.at(index / sizes.pixels(), channel, index % sizes.pixels());
      sum += widen(grad[at]) * leaky_slope<A>(widen(y[at]), params);
    }
    grad_noise[index] = sum;
  }
}

template <typename T, typename A>
NEXT3D_KERNEL scale_kernel(const T* x, const A* scale, EpilogueSizes sizes, int64_t count, T* y) {
  for (int64_t index = thread_index(); index < count; index += thread_count()) {
    const Element of = element_of(sizes, index);
    narrow(widen(x[index]) * scale[of.sample * sizes.channels + of.channel], y + index);
  }
}

template <typename T, typename A>
NEXT3D_KERNEL scale_backward_kernel(const T* grad, const T* x, const A* scale, EpilogueSizes sizes, int64_t count,
                                    T* grad_x, A* strip_sums) {
  const int64_t pixels = sizes.pixels(), strips = sizes.strips(), channels = sizes.channels;
  for (int64_t index = thread_index(); index < count; index += thread_count()) {
    const int64_t channel = index % channels, strip = index / channels % strips, sample = index / channels / strips;
    const int64_t first = strip * kStripPixels, last = first + kStripPixels < pixels ? first + kStripPixels : pixels;
    const A factor = scale[sample * channels + channel];
    A sum = A(0);
    for (int64_t pixel = first; pixel < last; ++pixel) {
      const int64_t at = sizes.at(sample, channel, pixel);
      const A g = widen(grad[at]);
      narrow(g * factor, grad_x + at);
      sum += g * widen(x[at]);
    }
    strip_sums[index] = sum;
  }
}

template <typename A>
NEXT3D_KERNEL sum_strips_kernel(const A* strip_sums, int64_t strips, int64_t width, int64_t count, A* sums) {
  for (int64_t index = thread_index(); index < count; index += thread_count()) {
    double total = 0;
    for (int64_t strip = 0; strip < strips; ++strip) {
      total += static_cast<double>(strip_sums[(index / width * strips + strip) * width + index % width]);
    }
    sums[index] = static_cast<A>(total);
  }
}

}  // namespace

template <typename T, typename A>
void layer_epilogue_cuda(Stream stream, const T* x, const A* taps, const A* scale, const A* noise, const A* bias,
                         const EpilogueSizes& sizes, const EpilogueParams<A>& params, T* y) {
  const int64_t count = sizes.samples * sizes.channels * sizes.pixels();
  launch(epilogue_kernel<T, A>, count, stream, x, taps, scale, noise, bias, sizes, params, count, y);
}

template <typename T, typename A>
void layer_epilogue_backward_cuda(Stream stream, const T* grad, const T* y, const A* scale, const A* noise,
                                  const A* bias, const EpilogueSizes& sizes, const EpilogueParams<A>& params,
                                  T* grad_filtered, A* grad_noise, A* strip_sums) {
  const int64_t count = sizes.samples * sizes.strips() * sizes.channels, pixels = sizes.samples * sizes.pixels();
  launch(epilogue_backward_kernel<T, A>, count, stream, grad, y, scale, noise, bias, sizes, params, count,
         grad_filtered, strip_sums);
  if (grad_noise != nullptr) {
    launch(noise_kernel<T, A>, pixels, stream, grad, y, sizes, params, pixels, grad_noise);
  }
}

template <typename T, typename A>
void scale_channels_cuda(Stream stream, const T* x, const A* scale, const EpilogueSizes& sizes, T* y) {
  const int64_t count = sizes.samples * sizes.channels * sizes.pixels();
  launch(scale_kernel<T, A>, count, stream, x, scale, sizes, count, y);
}

template <typename T, typename A>
void scale_channels_backward_cuda(Stream stream, const T* grad, const T* x, const A* scale, const EpilogueSizes& sizes,
                                  T* grad_x, A* strip_sums) {
  const int64_t count = sizes.samples * sizes.strips() * sizes.channels;
  launch(scale_backward_kernel<T, A>, count, stream, grad, x, scale, sizes, count, grad_x, strip_sums);
}

template <typename A>
void sum_strips_cuda(Stream stream, const A* strip_sums, int64_t samples, int64_t strips, int64_t width, A* sums) {
  launch(sum_strips_kernel<A>, samples * width, stream, strip_sums, strips, width, samples * width, sums);
}

#define NEXT3D_INSTANTIATE(T, A)                                                                                     \
  template void layer_epilogue_cuda<T, A>(Stream, const T*, const A*, const A*, const A*, const A*,                  \
                                          const EpilogueSizes&, const EpilogueParams<A>&, T*);                       \
  template void layer_epilogue_backward_cuda<T, A>(Stream, const T*, const T*, const A*, const A*, const A*,         \
                                                   const EpilogueSizes&, const EpilogueParams<A>&, T*, A*, A*);      \
  template void scale_channels_cuda<T, A>(Stream, const T*, const A*, const EpilogueSizes&, T*);                     \
  template void scale_channels_backward_cuda<T, A>(Stream, const T*, const T*, const A*, const EpilogueSizes&, T*, A*);
NEXT3D_INSTANTIATE(float, float)
NEXT3D_INSTANTIATE(double, double)
NEXT3D_INSTANTIATE(Half, float)
NEXT3D_INSTANTIATE(BFloat16, float)
#undef NEXT3D_INSTANTIATE
template void sum_strips_cuda<float>(Stream, const float*, int64_t, int64_t, int64_t, float*);
template void sum_strips_cuda<double>(Stream, const double*, int64_t, int64_t, int64_t, double*);

}  // namespace next3d
