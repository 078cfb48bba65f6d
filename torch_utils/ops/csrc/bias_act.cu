// Bias, activation, gain and clamp in one pass.
#include "kernels_cuda.h"

namespace next3d {
namespace {

template <Act act, typename T, typename A>
NEXT3D_KERNEL forward_kernel(const T* x, const T* bias, int64_t count, int64_t channels, int64_t inner,
                             ActParams<A> params, T* y) {
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    const A b = bias != nullptr ? widen(bias[i / inner % channels]) : A(0);
    narrow(forward<act>(widen(x[i]) + b, params), y + i);
  }
}

template <Act act, typename T, typename A>
NEXT3D_KERNEL backward_kernel(const T* grad, const T* reference, const T* bias, int64_t count, int64_t channels,
                              int64_t inner, ActParams<A> params, T* grad_x) {
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    const A b = bias != nullptr ? widen(bias[i / inner % channels]) : A(0);
    narrow(backward<act>(widen(grad[i]), widen(reference[i]) + b, params), grad_x + i);
  }
}

// One channel of one strip of pixels (outer, inner) per thread.
template <Act act, typename T, typename A>
NEXT3D_KERNEL backward_sum_kernel(const T* grad, const T* reference, const T* bias, int64_t pixels, int64_t channels,
                                  int64_t inner, int64_t count, ActParams<A> params, T* grad_x, A* strip_sums) {
  for (int64_t index = thread_index(); index < count; index += thread_count()) {
    const int64_t channel = index % channels, first = index / channels * kStripPixels;
    const int64_t last = first + kStripPixels < pixels ? first + kStripPixels : pixels;
    const A b = bias != nullptr ? widen(bias[channel]) : A(0);
    A sum = A(0);
    for (int64_t pixel = first; pixel < last; ++pixel) {
      const int64_t i = (pixel / inner * channels + channel) * inner + pixel % inner;
      const A value = backward<act>(widen(grad[i]), widen(reference[i]) + b, params);
      narrow(value, grad_x + i);
      sum += value;
    }
    strip_sums[index] = sum;
  }
}

template <Act act>
struct Chosen {
  static constexpr Act value = act;
};

// Calls f with the activation as a compile-time constant.
template <typename F>
void dispatch(Act act, const F& f) {
  switch (act) {
    case Act::linear: return f(Chosen<Act::linear>());
    case Act::relu: return f(Chosen<Act::relu>());
    case Act::lrelu: return f(Chosen<Act::lrelu>());
    case Act::tanh: return f(Chosen<Act::tanh>());
    case Act::sigmoid: return f(Chosen<Act::sigmoid>());
    case Act::elu: return f(Chosen<Act::elu>());
    case Act::selu: return f(Chosen<Act::selu>());
    case Act::softplus: return f(Chosen<Act::softplus>());
    case Act::swish: return f(Chosen<Act::swish>());
  }
}

}  // namespace

template <typename T, typename A>
void bias_act_cuda(Stream stream, const T* x, const T* bias, int64_t outer, int64_t channels, int64_t inner, Act act,
                   const ActParams<A>& params, T* y) {
  const int64_t count = outer * channels * inner;
  dispatch(act, [&](auto chosen) {
    launch(forward_kernel<decltype(chosen)::value, T, A>, count, stream, x, bias, count, channels, inner, params, y);
  });
}

template <typename T, typename A>
void bias_act_backward_cuda(Stream stream, const T* grad, const T* reference, const T* bias, int64_t outer,
                            int64_t channels, int64_t inner, Act act, const ActParams<A>& params, T* grad_x) {
  const int64_t count = outer * channels * inner;
  dispatch(act, [&](auto chosen) {
    launch(backward_kernel<decltype(chosen)::value, T, A>, count, stream, grad, reference, bias, count, channels,
           inner, params, grad_x);
  });
}

template <typename T, typename A>
void bias_act_backward_sum_cuda(Stream stream, const T* grad, const T* reference, const T* bias, int64_t outer,
                                int64_t channels, int64_t inner, Act act, const ActParams<A>& params, T* grad_x,
                                A* strip_sums) {
  const int64_t pixels = outer * inner, count = strip_count(pixels) * channels;
  dispatch(act, [&](auto chosen) {
    launch(backward_sum_kernel<decltype(chosen)::value, T, A>, count, stream, grad, reference, bias, pixels, channels,
           inner, count, params, grad_x, strip_sums);
  });
}

#define NEXT3D_INSTANTIATE(T, A)                                                                                  \
  template void bias_act_cuda<T, A>(Stream, const T*, const T*, int64_t, int64_t, int64_t, Act, const ActParams<A>&, \
                                    T*);                                                                          \
  template void bias_act_backward_cuda<T, A>(Stream, const T*, const T*, const T*, int64_t, int64_t, int64_t, Act, \
                                             const ActParams<A>&, T*);                                           \
  template void bias_act_backward_sum_cuda<T, A>(Stream, const T*, const T*, const T*, int64_t, int64_t, int64_t, \
                                                 Act, const ActParams<A>&, T*, A*);
NEXT3D_INSTANTIATE(float, float)
NEXT3D_INSTANTIATE(double, double)
NEXT3D_INSTANTIATE(Half, float)
NEXT3D_INSTANTIATE(BFloat16, float)
#undef NEXT3D_INSTANTIATE

}  // namespace next3d
