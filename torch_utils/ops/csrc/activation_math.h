// Scalar activations and their slopes, shared by the CPU and the CUDA kernels.
#pragma once

#include <cmath>

#include "host_device.h"

namespace next3d {

enum class Act : int { linear, relu, lrelu, tanh, sigmoid, elu, selu, softplus, swish };

constexpr double kSeluAlpha = 1.6732632423543772;
constexpr double kSeluScale = 1.0507009873554805;

template <typename A>
struct ActParams {
  A alpha;  // slope of lrelu below zero
  A gain;
  A clamp;  // negative: none
  A inverse_gain;  // 0 for a gain of 0
};

template <typename A>
NEXT3D_HD A sigmoid(A z) {
  return A(1) / (A(1) + std::exp(-z));
}

// The activation before gain and clamp.
template <Act act, typename A>
NEXT3D_HD A activate(A z, A alpha) {
  if constexpr (act == Act::relu) return z > A(0) ? z : (z <= A(0) ? A(0) : z);  // keeps NaN
  if constexpr (act == Act::lrelu) {
    const A below = z * alpha;  // taken in both cases, so that loops vectorize
    return z > A(0) ? z : below;
  }
  if constexpr (act == Act::tanh) return std::tanh(z);
  if constexpr (act == Act::sigmoid) return sigmoid(z);
  if constexpr (act == Act::elu) return z > A(0) ? z : std::expm1(z);
  if constexpr (act == Act::selu) return A(kSeluScale) * (z > A(0) ? z : A(kSeluAlpha) * std::expm1(z));
  if constexpr (act == Act::softplus) return (z > A(0) ? z : A(0)) + std::log1p(std::exp(z > A(0) ? -z : z));
  if constexpr (act == Act::swish) return z * sigmoid(z);
  return z;
}

// Slope of the activation, from its value `t` (swish: from its argument).
template <Act act, typename A>
NEXT3D_HD A slope(A t, A alpha) {
  if constexpr (act == Act::relu) return t > A(0) ? A(1) : A(0);
  if constexpr (act == Act::lrelu) return t > A(0) ? A(1) : alpha;
  if constexpr (act == Act::tanh) return A(1) - t * t;
  if constexpr (act == Act::sigmoid) return t * (A(1) - t);
  if constexpr (act == Act::elu) return t > A(0) ? A(1) : t + A(1);
  if constexpr (act == Act::selu) return t > A(0) ? A(kSeluScale) : t + A(kSeluScale * kSeluAlpha);
  if constexpr (act == Act::softplus) return -std::expm1(-t);
  if constexpr (act == Act::swish) {
    const A s = sigmoid(t);
    return s * (A(1) + t * (A(1) - s));
  }
  return A(1);
}

// clamp(gain * act(z)). Conditions are combined without branches, so that loops vectorize.
template <Act act, typename A>
NEXT3D_HD A forward(A z, const ActParams<A>& p) {
  const A y = activate<act>(z, p.alpha) * p.gain;
  const bool clamped = p.clamp >= A(0);
  const A low = clamped & (y < -p.clamp) ? -p.clamp : y;
  return clamped & (y > p.clamp) ? p.clamp : low;
}

// Gradient with respect to z; `reference` is the clamped output (swish: z).
template <Act act, typename A>
NEXT3D_HD A backward(A grad, A reference, const ActParams<A>& p) {
  const A y = act == Act::swish ? activate<act>(reference, p.alpha) * p.gain : reference;
  const A t = act == Act::swish ? reference : reference * p.inverse_gain;
  const A gradient = grad * (slope<act>(t, p.alpha) * p.gain);
  const bool inside = (p.clamp < A(0)) | ((y < p.clamp) & (y > -p.clamp));
  return inside ? gradient : A(0);
}

}  // namespace next3d
