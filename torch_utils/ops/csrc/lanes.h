// Vectors of the processor's width, and the exponentials that the decoder needs. For CPU kernels only.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX512F__) || defined(__FMA__)
#include <immintrin.h>
#endif

namespace next3d {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename A>
struct VectorOf {
  typedef A type __attribute__((vector_size(kVectorBytes)));
};
template <typename A>
using Vector = typename VectorOf<A>::type;
template <typename A>
constexpr int kWidth = kVectorBytes / sizeof(A);

using Floats = Vector<float>;
using Ints = Vector<int32_t>;

template <typename A>
inline Vector<A> splat(A value) {
  return value - Vector<A>{};
}

// kWidth<A> values from memory of any alignment, widened to A.
template <typename A, typename T>
inline Vector<A> load(const T* from) {
  Vector<A> v;
  if constexpr (std::is_same_v<A, T>) {
    std::memcpy(&v, from, sizeof(v));
  } else if constexpr (std::is_same_v<T, c10::BFloat16>) {
    typedef uint16_t Short __attribute__((vector_size(kVectorBytes / 2)));
    Short bits;
    std::memcpy(&bits, from, sizeof(bits));
    const auto wide = __builtin_convertvector(bits, Vector<uint32_t>) << 16;
    std::memcpy(&v, &wide, sizeof(v));
  } else {
    for (int i = 0; i < kWidth<A>; ++i) v[i] = static_cast<A>(from[i]);
  }
  return v;
}

template <typename A>
inline void store(A* to, Vector<A> v) {
  std::memcpy(to, &v, sizeof(v));
}

// a * b + c, in one rounding where the processor has an instruction for it.
inline Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}
inline Vector<double> multiply_add(Vector<double> a, Vector<double> b, Vector<double> c) { return a * b + c; }

// Sum of the lanes, in a fixed order.
template <typename A>
inline A add_lanes(Vector<A> v) {
  A values[kWidth<A>];
  store(values, v);
  for (int half = kWidth<A> / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) values[i] += values[i + half];
  }
  return values[0];
}

// exp(x) for x <= 0, to about 1e-7 of its value down to exp(-87), and that below.
inline Floats exp_of_negative(Floats x) {
  x = x < -87.0f ? splat(-87.0f) : x;
  const Floats shifter = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number in the low bits
  const Floats shifted = multiply_add(x, splat(1.44269504f), shifter);
  const Floats whole = shifted - shifter;
  Floats r = multiply_add(whole, splat(-0.693145752f), x);  // ln 2 in two parts, the first one with few digits
  r = multiply_add(whole, splat(-1.42860677e-6f), r);
  Floats series = splat(1.0f / 5040);
  for (const float factor : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    series = multiply_add(series, r, splat(factor));
  }
  Ints bits, power;
  std::memcpy(&bits, &shifted, sizeof(bits));
  power = (bits << 23) + (127 << 23);
  Floats scale;
  std::memcpy(&scale, &power, sizeof(scale));
  return series * scale;
}

// log(1 + exp(x)) to about 2e-7 of its value: log(1 + t) = 2 artanh(t / (2 + t)), whose argument is at most 1/3.
inline Floats softplus(Floats x) {
  const Floats t = exp_of_negative(x > 0.0f ? -x : x);
  const Floats s = t / (t + 2.0f), square = s * s;
  Floats series = splat(2.0f / 15);
  for (const float factor : {2.0f / 13, 2.0f / 11, 2.0f / 9, 2.0f / 7, 2.0f / 5, 2.0f / 3, 2.0f}) {
    series = multiply_add(series, square, splat(factor));
  }
  return multiply_add(series, s, x > 0.0f ? x : Floats{});
}

// 1 / (1 + exp(-x)) to about 2e-7 of its value.
inline Floats sigmoid(Floats x) {
  const Floats t = exp_of_negative(x > 0.0f ? -x : x);
  return (x > 0.0f ? splat(1.0f) : t) / (t + 1.0f);
}

}  // namespace next3d
