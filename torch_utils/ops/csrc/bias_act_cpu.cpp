// Bias, activation, gain and clamp in one pass.
#include <ATen/Parallel.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "half_bits.h"
#include "kernels_cpu.h"

namespace next3d {
namespace {

constexpr int64_t kGrain = 32768;

// Calls f(first, count, channel) for runs of elements of one channel, or with channel < 0 for runs that walk all
// channels from 0 (fastest dimension). Without a bias the runs are arbitrary.
template <typename F>
void for_each_run(bool has_bias, int64_t outer, int64_t channels, int64_t inner, const F& f) {
  if (!has_bias) {
    at::parallel_for(0, outer * channels * inner, kGrain,
                     [&](int64_t begin, int64_t end) { f(begin, end - begin, int64_t(0)); });
    return;
  }
  const bool fastest = inner == 1;
  const int64_t runs = fastest ? outer : outer * channels, length = fastest ? channels : inner;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, length));
  at::parallel_for(0, runs, grain, [&](int64_t begin, int64_t end) {
    for (int64_t run = begin; run < end; ++run) f(run * length, length, fastest ? int64_t(-1) : run % channels);
  });
}

template <Act act, typename T, typename A>
void forward_all(const T* x, const T* bias, int64_t outer, int64_t channels, int64_t inner, const ActParams<A>& p,
                 T* y) {
  for_each_run(bias != nullptr, outer, channels, inner, [&](int64_t first, int64_t count, int64_t channel) {
    const ActParams<A> params = p;
    const T* in = x + first;
    T* __restrict out = y + first;
    if (channel < 0) {
      for (int64_t i = 0; i < count; ++i) out[i] = narrowed<T>(forward<act>(widened(in[i]) + widened(bias[i]), params));
    } else {
      const A b = bias != nullptr ? widened(bias[channel]) : A(0);
      for (int64_t i = 0; i < count; ++i) out[i] = narrowed<T>(forward<act>(widened(in[i]) + b, params));
    }
  });
}

template <Act act, typename T, typename A>
void backward_all(const T* grad, const T* reference, const T* bias, int64_t outer, int64_t channels, int64_t inner,
                  const ActParams<A>& p, T* grad_x) {
  for_each_run(bias != nullptr, outer, channels, inner, [&](int64_t first, int64_t count, int64_t channel) {
    const ActParams<A> params = p;
    const T *g = grad + first, *r = reference + first;
    T* __restrict out = grad_x + first;
    if (channel < 0) {
      for (int64_t i = 0; i < count; ++i) {
        out[i] = narrowed<T>(backward<act>(widened(g[i]), widened(r[i]) + widened(bias[i]), params));
      }
    } else {
      const A b = bias != nullptr ? widened(bias[channel]) : A(0);
      for (int64_t i = 0; i < count; ++i) {
        out[i] = narrowed<T>(backward<act>(widened(g[i]), widened(r[i]) + b, params));
      }
    }
  });
}

// As backward_all; also adds up the gradient per channel over strips of pixels, which are (outer, inner).
template <Act act, typename T, typename A>
void backward_and_sum(const T* grad, const T* reference, const T* bias, int64_t outer, int64_t channels, int64_t inner,
                      const ActParams<A>& p, T* grad_x, A* strip_sums) {
  const int64_t pixels = outer * inner;
  const std::vector<T> silence(bias == nullptr ? channels : 0, narrowed<T>(A(0)));
  const T* shifts = bias == nullptr ? silence.data() : bias;
  at::parallel_for(0, strip_count(pixels), std::max<int64_t>(1, kGrain / kStripPixels / std::max<int64_t>(1, channels)),
                   [&](int64_t begin, int64_t end) {
    const ActParams<A> params = p;
    for (int64_t strip = begin; strip < end; ++strip) {
      A* __restrict sums = strip_sums + strip * channels;
      std::fill(sums, sums + channels, A(0));
      const int64_t last = std::min((strip + 1) * kStripPixels, pixels);
      for (int64_t pixel = strip * kStripPixels, count = 1; pixel < last; pixel += count) {
        if (inner == 1) {
          const T *g = grad + pixel * channels, *r = reference + pixel * channels;
          T* __restrict out = grad_x + pixel * channels;
          for (int64_t c = 0; c < channels; ++c) {
            const A value = backward<act>(widened(g[c]), widened(r[c]) + widened(shifts[c]), params);
            out[c] = narrowed<T>(value);
            sums[c] += value;
          }
          continue;
        }
        count = std::min(last - pixel, inner - pixel % inner);
        for (int64_t c = 0; c < channels; ++c) {
          const int64_t first = (pixel / inner * channels + c) * inner + pixel % inner;
          const T *g = grad + first, *r = reference + first;
          T* __restrict out = grad_x + first;
          const A b = widened(shifts[c]);
          A sum = A(0);
#pragma omp simd reduction(+ : sum)
          for (int64_t i = 0; i < count; ++i) {
            const A value = backward<act>(widened(g[i]), widened(r[i]) + b, params);
            out[i] = narrowed<T>(value);
            sum += value;
          }
          sums[c] += sum;
        }
      }
    }
  });
}

// Calls f with the activation as a compile-time constant.
template <typename F>
void dispatch(Act act, const F& f) {
  switch (act) {
    case Act::linear: return f(std::integral_constant<Act, Act::linear>());
    case Act::relu: return f(std::integral_constant<Act, Act::relu>());
    case Act::lrelu: return f(std::integral_constant<Act, Act::lrelu>());
    case Act::tanh: return f(std::integral_constant<Act, Act::tanh>());
    case Act::sigmoid: return f(std::integral_constant<Act, Act::sigmoid>());
    case Act::elu: return f(std::integral_constant<Act, Act::elu>());
    case Act::selu: return f(std::integral_constant<Act, Act::selu>());
    case Act::softplus: return f(std::integral_constant<Act, Act::softplus>());
    case Act::swish: return f(std::integral_constant<Act, Act::swish>());
  }
}

}  // namespace

template <typename T>
void bias_act_cpu(const T* x, const T* bias, int64_t outer, int64_t channels, int64_t inner, Act act,
                  const ActParams<typename Accumulator<T>::type>& params, T* y) {
  dispatch(act, [&](auto chosen) { forward_all<chosen.value>(x, bias, outer, channels, inner, params, y); });
}

template <typename T>
void bias_act_backward_cpu(const T* grad, const T* reference, const T* bias, int64_t outer, int64_t channels,
                           int64_t inner, Act act, const ActParams<typename Accumulator<T>::type>& params,
                           T* grad_x) {
  dispatch(act, [&](auto chosen) {
    backward_all<chosen.value>(grad, reference, bias, outer, channels, inner, params, grad_x);
  });
}

template <typename T>
void bias_act_backward_sum_cpu(const T* grad, const T* reference, const T* bias, int64_t outer, int64_t channels,
                               int64_t inner, Act act, const ActParams<typename Accumulator<T>::type>& params,
                               T* grad_x, typename Accumulator<T>::type* strip_sums) {
  dispatch(act, [&](auto chosen) {
    backward_and_sum<chosen.value>(grad, reference, bias, outer, channels, inner, params, grad_x, strip_sums);
  });
}

#define NEXT3D_INSTANTIATE(T)                                                                                  \
  template void bias_act_cpu<T>(const T*, const T*, int64_t, int64_t, int64_t, Act,                            \
                                const ActParams<Accumulator<T>::type>&, T*);                                   \
  template void bias_act_backward_cpu<T>(const T*, const T*, const T*, int64_t, int64_t, int64_t, Act,         \
                                         const ActParams<Accumulator<T>::type>&, T*);                          \
  template void bias_act_backward_sum_cpu<T>(const T*, const T*, const T*, int64_t, int64_t, int64_t, Act,     \
                                             const ActParams<Accumulator<T>::type>&, T*, Accumulator<T>::type*);
NEXT3D_INSTANTIATE(float)
NEXT3D_INSTANTIATE(double)
NEXT3D_INSTANTIATE(c10::Half)
NEXT3D_INSTANTIATE(c10::BFloat16)
#undef NEXT3D_INSTANTIATE

}  // namespace next3d
