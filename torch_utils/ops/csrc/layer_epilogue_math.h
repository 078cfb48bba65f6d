// What follows the convolution of a StyleGAN2 layer: gain * lrelu(fir(x) * scale + noise + bias).
// Sizes and arithmetic of one element, shared by the CPU and the CUDA kernels.
#pragma once

#include <cstdint>

#include "host_device.h"
#include "strip_math.h"

namespace next3d {

constexpr int kEpilogueTaps = 4;  // at input pixels -1, 0, 1, 2 relative to the output

// x [samples, channels, in_height, in_width] -> y [samples, channels, height, width]; without filter of equal size.
struct EpilogueSizes {
  int64_t samples, channels;
  int in_height, in_width, height, width;
  bool channels_last;
  bool shared_noise;  // one noise image for all samples

  NEXT3D_HD int64_t pixels() const { return int64_t(height) * width; }
  NEXT3D_HD int64_t strips() const { return strip_count(pixels()); }
  NEXT3D_HD int64_t noise_offset(int64_t sample) const { return shared_noise ? 0 : sample * pixels(); }
  // Index of an element of y.
  NEXT3D_HD int64_t at(int64_t sample, int64_t channel, int64_t pixel) const {
    return channels_last ? (sample * pixels() + pixel) * channels + channel
                         : (sample * channels + channel) * pixels() + pixel;
  }
};

template <typename A>
struct EpilogueParams {
  A slope, gain;
  A gain_below;                    // gain * slope
  A inverse_gain, inverse_below;   // 1 / gain, 1 / gain_below
};

// Gain and leaky ReLU; the product is taken in both cases, so that loops vectorize.
template <typename A>
NEXT3D_HD A leaky(A value, const EpilogueParams<A>& p) {
  const A below = value * p.slope;
  return (value > A(0) ? value : below) * p.gain;
}

// The slope of `leaky` and its argument, both from its result y.
template <typename A>
NEXT3D_HD A leaky_slope(A y, const EpilogueParams<A>& p) {
  return y > A(0) ? p.gain : p.gain_below;
}
template <typename A>
NEXT3D_HD A leaky_argument(A y, const EpilogueParams<A>& p) {
  return y * (y > A(0) ? p.inverse_gain : p.inverse_below);
}

}  // namespace next3d
