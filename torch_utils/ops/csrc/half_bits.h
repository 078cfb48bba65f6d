// Conversions between storage and sum types by integer arithmetic without branches, so that compilers vectorize loops
// over half types. Rounding is to nearest, ties to even; infinities and NaN are kept.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <bit>
#include <cstdint>

namespace next3d {

inline double widened(double value) { return value; }
inline float widened(float value) { return value; }
inline float widened(c10::BFloat16 value) { return std::bit_cast<float>(uint32_t(value.x) << 16); }
inline float widened(c10::Half value) {
  const uint32_t magnitude = value.x & 0x7fffu, sign = uint32_t(value.x & 0x8000u) << 16;
  const uint32_t exponent_shift = magnitude < 0x7c00u ? 112u << 23 : 224u << 23;  // infinities and NaN stay such
  const uint32_t normal = (magnitude << 13) + exponent_shift;
  const uint32_t tiny = std::bit_cast<uint32_t>(float(int32_t(magnitude)) * 0x1p-24f);
  return std::bit_cast<float>((magnitude < 0x400u ? tiny : normal) | sign);
}

template <typename T>
struct Narrowed;
template <>
struct Narrowed<double> {
  static double from(double value) { return value; }
};
template <>
struct Narrowed<float> {
  static float from(float value) { return value; }
};
template <>
struct Narrowed<c10::BFloat16> {
  static c10::BFloat16 from(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    const uint32_t kept = (bits & 0x7fffffffu) > 0x7f800000u ? bits | 0x400000u : rounded;
    return {static_cast<uint16_t>(kept >> 16), c10::BFloat16::from_bits()};
  }
};
template <>
struct Narrowed<c10::Half> {
  static c10::Half from(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value), magnitude = bits & 0x7fffffffu;
    const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // Below 2^-14: the sum with 0.5 rounds to multiples of 2^-24.
    const uint32_t tiny = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
    const uint32_t large = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const uint32_t half = magnitude < 0x38800000u ? tiny : magnitude < 0x477ff000u ? normal : large;
    return {static_cast<uint16_t>(half | ((bits >> 16) & 0x8000u)), c10::Half::from_bits()};
  }
};

template <typename T, typename A>
T narrowed(A value) {
  return Narrowed<T>::from(value);
}

}  // namespace next3d
