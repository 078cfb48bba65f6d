// Bias, activation, gain and clamp in one pass.
#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <type_traits>

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

template <Act act, typename T>
void forward_all(const T* x, const T* bias, int64_t outer, int64_t channels, int64_t inner,
                 const ActParams<typename Accumulator<T>::type>& params, T* y) {
  using A = typename Accumulator<T>::type;
  for_each_run(bias != nullptr, outer, channels, inner, [&](int64_t first, int64_t count, int64_t channel) {
    const T* in = x + first;
    T* out = y + first;
    if (bias != nullptr && channel < 0) {
      for (int64_t i = 0; i < count; ++i) {
        out[i] = static_cast<T>(forward<act>(static_cast<A>(in[i]) + static_cast<A>(bias[i]), params));
      }
    } else {
      const A b = bias != nullptr ? static_cast<A>(bias[channel]) : A(0);
      for (int64_t i = 0; i < count; ++i) out[i] = static_cast<T>(forward<act>(static_cast<A>(in[i]) + b, params));
    }
  });
}

template <Act act, typename T>
void backward_all(const T* grad, const T* reference, const T* bias, int64_t outer, int64_t channels, int64_t inner,
                  const ActParams<typename Accumulator<T>::type>& params, T* grad_x) {
  using A = typename Accumulator<T>::type;
  for_each_run(bias != nullptr, outer, channels, inner, [&](int64_t first, int64_t count, int64_t channel) {
    const T* g = grad + first;
    const T* r = reference + first;
    T* out = grad_x + first;
    if (bias != nullptr && channel < 0) {
      for (int64_t i = 0; i < count; ++i) {
        const A z = static_cast<A>(r[i]) + static_cast<A>(bias[i]);
        out[i] = static_cast<T>(backward<act>(static_cast<A>(g[i]), z, params));
      }
    } else {
      const A b = bias != nullptr ? static_cast<A>(bias[channel]) : A(0);
      for (int64_t i = 0; i < count; ++i) {
        out[i] = static_cast<T>(backward<act>(static_cast<A>(g[i]), static_cast<A>(r[i]) + b, params));
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

#define NEXT3D_INSTANTIATE(T)                                                                                  \
  template void bias_act_cpu<T>(const T*, const T*, int64_t, int64_t, int64_t, Act,                            \
                                const ActParams<Accumulator<T>::type>&, T*);                                   \
  template void bias_act_backward_cpu<T>(const T*, const T*, const T*, int64_t, int64_t, int64_t, Act,         \
                                         const ActParams<Accumulator<T>::type>&, T*);
NEXT3D_INSTANTIATE(float)
NEXT3D_INSTANTIATE(double)
NEXT3D_INSTANTIATE(c10::Half)
NEXT3D_INSTANTIATE(c10::BFloat16)
#undef NEXT3D_INSTANTIATE

}  // namespace next3d
