// Argument checks of layer_epilogue and scale_channels, shared by the CPU and the CUDA bindings (see bindings.h).
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <tuple>

#include "bindings_types.h"
#include "layer_epilogue_math.h"

namespace next3d {

template <typename A>
EpilogueParams<A> epilogue_params(double slope, double gain) {
  return {A(slope), A(gain), A(gain * slope), A(1 / gain), A(1 / (gain * slope))};
}

template <typename T>
const Sum<T>* sum_pointer(const Tensor& x) {
  return x.defined() ? x.const_data_ptr<Sum<T>>() : nullptr;
}

// `value` of the sum type of x, on its device, contiguous; undefined where there is none.
inline Tensor operand(const std::optional<Tensor>& value, const Tensor& x, at::IntArrayRef shape, const char* name) {
  if (!value.has_value()) return Tensor();
  TORCH_CHECK(value->sizes() == shape && value->scalar_type() == sum_type(x) && value->device() == x.device(), name,
              ": expected ", sum_type(x), " ", shape, " on ", x.device(), ", got ", value->scalar_type(), " ",
              value->sizes(), " on ", value->device());
  return value->contiguous();
}

inline Tensor noise_operand(const std::optional<Tensor>& noise, const Tensor& x, int64_t height, int64_t width) {
  const int64_t images = noise.has_value() && noise->dim() == 4 && noise->size(0) == 1 ? 1 : x.size(0);
  return operand(noise, x, {images, 1, height, width}, "noise");
}

inline EpilogueSizes epilogue_sizes(const Tensor& x, int64_t height, int64_t width, const Tensor& noise) {
  return {x.size(0),   x.size(1),  int(x.size(2)), int(x.size(3)),
          int(height), int(width), layout(x) == at::MemoryFormat::ChannelsLast,
          noise.defined() && noise.size(0) == 1};
}

template <typename Kernels>
struct EpilogueBindings {
  static Tensor layer_epilogue(const Tensor& x, const std::optional<Tensor>& taps, const std::optional<Tensor>& scale,
                               const std::optional<Tensor>& noise, const Tensor& bias, double slope, double gain) {
    const c10::DeviceGuard guard(x.device());
    TORCH_CHECK(x.dim() == 4, "x: expected [N, C, H, W], got ", x.sizes());
    const int64_t shrink = taps.has_value() ? kEpilogueTaps - 3 : 0;
    const int64_t height = x.size(2) - shrink, width = x.size(3) - shrink;
    TORCH_CHECK(height >= 0 && width >= 0, "x: expected at least one pixel, got ", x.sizes());
    const Tensor f = operand(taps, x, {kEpilogueTaps}, "taps"), b = operand(bias, x, {x.size(1)}, "bias");
    const Tensor s = operand(scale, x, {x.size(0), x.size(1)}, "scale"), z = noise_operand(noise, x, height, width);
    const Tensor in = x.contiguous(layout(x));
    Tensor y = at::empty({x.size(0), x.size(1), height, width}, x.options(), layout(x));
    if (y.numel() == 0) return y;
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "next3d::layer_epilogue", [&] {
      Kernels::layer_epilogue(in.const_data_ptr<scalar_t>(), sum_pointer<scalar_t>(f), sum_pointer<scalar_t>(s),
                              sum_pointer<scalar_t>(z), sum_pointer<scalar_t>(b), epilogue_sizes(x, height, width, z),
                              epilogue_params<Sum<scalar_t>>(slope, gain), y.data_ptr<scalar_t>());
    });
    return y;
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> layer_epilogue_backward(
      const Tensor& grad, const Tensor& y, const std::optional<Tensor>& scale, const std::optional<Tensor>& noise,
      const Tensor& bias, double slope, double gain, std::array<bool, 4> wanted) {
    const c10::DeviceGuard guard(y.device());
    TORCH_CHECK(y.dim() == 4 && grad.sizes() == y.sizes() && grad.scalar_type() == y.scalar_type(),
                "layer_epilogue_backward: gradient and output do not match");
    const Tensor b = operand(bias, y, {y.size(1)}, "bias"), s = operand(scale, y, {y.size(0), y.size(1)}, "scale");
    const Tensor z = noise_operand(noise, y, y.size(2), y.size(3));
    const Tensor g = grad.contiguous(layout(y)), r = y.contiguous(layout(y));
    const EpilogueSizes sizes = epilogue_sizes(y, y.size(2), y.size(3), z);
    const auto wide = y.options().dtype(sum_type(y));
    const auto flag = [](bool on, int64_t size) { return on ? size : int64_t(0); };
    Tensor filtered = wanted[0] ? at::empty_like(r, r.options(), layout(y)) : at::empty({0}, y.options());
    Tensor grad_noise = at::empty({flag(wanted[2], sizes.samples), 1, y.size(2), y.size(3)}, wide);
    Tensor strips = at::empty({sizes.samples, sizes.strips(), 2, sizes.channels}, wide);
    Tensor sums = at::empty({sizes.samples, 2, sizes.channels}, wide);
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, y.scalar_type(), "next3d::layer_epilogue_backward", [&] {
      using A = Sum<scalar_t>;
      if (y.numel() > 0) {
        Kernels::layer_epilogue_backward(
            g.const_data_ptr<scalar_t>(), r.const_data_ptr<scalar_t>(), sum_pointer<scalar_t>(s),
            sum_pointer<scalar_t>(z), sum_pointer<scalar_t>(b), sizes, epilogue_params<A>(slope, gain),
            wanted[0] ? filtered.data_ptr<scalar_t>() : static_cast<scalar_t*>(nullptr),
            wanted[2] ? grad_noise.data_ptr<A>() : static_cast<A*>(nullptr), strips.data_ptr<A>());
      }
      Kernels::sum_strips(static_cast<const A*>(strips.const_data_ptr<A>()), sizes.samples, sizes.strips(),
                          2 * sizes.channels, sums.data_ptr<A>());
    });
    Tensor grad_scale = wanted[1] && s.defined() ? sums.select(1, 1).div(s) : at::empty({0}, wide);
    Tensor grad_bias = wanted[3] ? sums.select(1, 0).sum(0) : at::empty({0}, wide);
    return {filtered, grad_scale, grad_noise, grad_bias};
  }

  static Tensor scale_channels(const Tensor& x, const Tensor& scale) {
    const c10::DeviceGuard guard(x.device());
    TORCH_CHECK(x.dim() == 4, "x: expected [N, C, H, W], got ", x.sizes());
    const Tensor in = x.contiguous(layout(x)), s = operand(scale, x, {x.size(0), x.size(1)}, "scale");
    Tensor y = at::empty_like(in, in.options(), layout(x));
    if (y.numel() == 0) return y;
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "next3d::scale_channels", [&] {
      Kernels::scale_channels(in.const_data_ptr<scalar_t>(), sum_pointer<scalar_t>(s),
                              epilogue_sizes(x, x.size(2), x.size(3), Tensor()), y.data_ptr<scalar_t>());
    });
    return y;
  }

  static std::tuple<Tensor, Tensor> scale_channels_backward(const Tensor& grad, const Tensor& x, const Tensor& scale) {
    const c10::DeviceGuard guard(x.device());
    TORCH_CHECK(x.dim() == 4 && grad.sizes() == x.sizes() && grad.scalar_type() == x.scalar_type(),
                "scale_channels_backward: gradient and x do not match");
    const Tensor s = operand(scale, x, {x.size(0), x.size(1)}, "scale");
    const Tensor g = grad.contiguous(layout(x)), in = x.contiguous(layout(x));
    const EpilogueSizes sizes = epilogue_sizes(x, x.size(2), x.size(3), Tensor());
    const auto wide = x.options().dtype(sum_type(x));
    Tensor grad_x = at::empty_like(in, in.options(), layout(x));
    Tensor strips = at::empty({sizes.samples, sizes.strips(), sizes.channels}, wide);
    Tensor grad_scale = at::empty({sizes.samples, sizes.channels}, wide);
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "next3d::scale_channels_backward", [&] {
      using A = Sum<scalar_t>;
      if (x.numel() > 0) {
        Kernels::scale_channels_backward(g.const_data_ptr<scalar_t>(), in.const_data_ptr<scalar_t>(),
                                         sum_pointer<scalar_t>(s), sizes, grad_x.data_ptr<scalar_t>(),
                                         strips.data_ptr<A>());
      }
      Kernels::sum_strips(static_cast<const A*>(strips.const_data_ptr<A>()), sizes.samples, sizes.strips(),
                          sizes.channels, grad_scale.data_ptr<A>());
    });
    return {grad_x, grad_scale};
  }

  static void register_all(torch::Library& m) {
    m.impl("layer_epilogue", &layer_epilogue);
    m.impl("layer_epilogue_backward", &layer_epilogue_backward);
    m.impl("scale_channels", &scale_channels);
    m.impl("scale_channels_backward", &scale_channels_backward);
  }
};

}  // namespace next3d
