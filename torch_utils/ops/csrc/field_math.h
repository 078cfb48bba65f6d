// The decoder of the planes, shared by the CPU and the CUDA kernels.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace next3d {

constexpr int64_t kMaxChannels = 128;  // of planes and of colours
constexpr float kColorMargin = 0.001f;  // colours lie in (-margin, 1 + margin)

// channels -> hidden (softplus) -> sigma, colours; weights [outputs, inputs], contiguous.
struct Mlp {
  const float *hidden_weight, *hidden_bias;  // [hidden, channels], [hidden]
  const float *out_weight, *out_bias;  // [1 + colors, hidden], [1 + colors]
  int64_t hidden, colors;
};

NEXT3D_HD float field_softplus(float x) {
  return (x > 0.0f ? x : 0.0f) + std::log1p(std::exp(x > 0.0f ? -x : x));
}

NEXT3D_HD float field_color(float x) { return (1 + 2 * kColorMargin) / (1.0f + std::exp(-x)) - kColorMargin; }

}  // namespace next3d
