// The launchers of kernels_cuda.h as the `Kernels` of bindings.h, on the stream that `Context` names.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "kernels_cuda.h"
#include "kernels_planes_cuda.h"

namespace next3d {

// Pointers to torch's half types become pointers to the device's.
template <typename T>
T native(T value) {
  return value;
}
inline Half* native(c10::Half* at) { return reinterpret_cast<Half*>(at); }
inline const Half* native(const c10::Half* at) { return reinterpret_cast<const Half*>(at); }
inline BFloat16* native(c10::BFloat16* at) { return reinterpret_cast<BFloat16*>(at); }
inline const BFloat16* native(const c10::BFloat16* at) { return reinterpret_cast<const BFloat16*>(at); }

template <typename Context>
struct DeviceKernels {
  template <typename... Args>
  static void rasterize(Args... args) {
    rasterize_cuda(Context::get(), args...);
    Context::check();
  }
  template <typename... Args>
  static void rasterize_backward(Args... args) {
    rasterize_backward_cuda(Context::get(), args...);
    Context::check();
  }
  template <typename... Args>
  static void interpolate(Args... args) {
    interpolate_cuda(Context::get(), args...);
    Context::check();
  }
  template <typename... Args>
  static void interpolate_backward(Args... args) {
    interpolate_backward_cuda(Context::get(), args...);
    Context::check();
  }
  template <typename... Args>
  static void fill_holes(Args... args) {
    fill_holes_cuda(Context::get(), args...);
    Context::check();
  }
  template <typename... Args>
  static void texture_planes(Args... args) {
    texture_planes_cuda(Context::get(), args...);
    Context::check();
  }
  template <typename... Args>
  static void texture_planes_backward(Args... args) {
    texture_planes_backward_cuda(Context::get(), args...);
    Context::check();
  }
  template <typename... Args>
  static void sample_mask(Args... args) {
    sample_mask_cuda(Context::get(), args...);
    Context::check();
  }
  template <typename... Args>
  static void upfirdn2d(Args... args) {
    upfirdn2d_cuda(Context::get(), native(args)...);
    Context::check();
  }
  template <typename... Args>
  static void layer_epilogue(Args... args) {
    layer_epilogue_cuda(Context::get(), native(args)...);
    Context::check();
  }
  template <typename... Args>
  static void layer_epilogue_backward(Args... args) {
    layer_epilogue_backward_cuda(Context::get(), native(args)...);
    Context::check();
  }
  template <typename... Args>
  static void scale_channels(Args... args) {
    scale_channels_cuda(Context::get(), native(args)...);
    Context::check();
  }
  template <typename... Args>
  static void scale_channels_backward(Args... args) {
    scale_channels_backward_cuda(Context::get(), native(args)...);
    Context::check();
  }
  template <typename... Args>
  static void sum_strips(Args... args) {
    sum_strips_cuda(Context::get(), native(args)...);
    Context::check();
  }
  template <typename... Args>
  static void bias_act_backward_sum(Args... args) {
    bias_act_backward_sum_cuda(Context::get(), native(args)...);
    Context::check();
  }
  template <typename... Args>
  static void bias_act(Args... args) {
    bias_act_cuda(Context::get(), native(args)...);
    Context::check();
  }
  template <typename... Args>
  static void bias_act_backward(Args... args) {
    bias_act_backward_cuda(Context::get(), native(args)...);
    Context::check();
  }
  template <typename... Args>
  static void sample_planes(Args... args) {
    sample_planes_cuda(Context::get(), native(args)...);
    Context::check();
  }
  template <typename... Args>
  static void sample_planes_backward(Args... args) {
    sample_planes_backward_cuda(Context::get(), native(args)...);
    Context::check();
  }
  template <typename... Args>
  static void sample_planes_slopes(Args... args) {
    sample_planes_slopes_cuda(Context::get(), native(args)...);
    Context::check();
  }
  template <typename... Args>
  static void query_field(Args... args) {
    query_field_cuda(Context::get(), native(args)...);
    Context::check();
  }
};

}  // namespace next3d
