// Registers the CPU kernels under the schemas that the Python modules define.
#include "bindings.h"
#include "kernels_cpu.h"
#include "kernels_texture.h"
#include "kernels_planes.h"

namespace next3d {
namespace {

struct CpuKernels {
  template <typename... Args>
  static void rasterize(Args... args) {
    rasterize_cpu(args...);
  }
  template <typename... Args>
  static void rasterize_backward(Args... args) {
    rasterize_backward_cpu(args...);
  }
  template <typename... Args>
  static void interpolate(Args... args) {
    interpolate_cpu(args...);
  }
  template <typename... Args>
  static void interpolate_backward(Args... args) {
    interpolate_backward_cpu(args...);
  }
  template <typename... Args>
  static void fill_holes(Args... args) {
    fill_holes_cpu(args...);
  }
  template <typename... Args>
  static void texture_planes(Args... args) {
    texture_planes_cpu(args...);
  }
  template <typename... Args>
  static void texture_planes_backward(Args... args) {
    texture_planes_backward_cpu(args...);
  }
  template <typename... Args>
  static void sample_mask(Args... args) {
    sample_mask_cpu(args...);
  }
  template <typename... Args>
  static void upfirdn2d(Args... args) {
    upfirdn2d_cpu(args...);
  }
  template <typename... Args>
  static void layer_epilogue(Args... args) {
    layer_epilogue_cpu(args...);
  }
  template <typename... Args>
  static void layer_epilogue_backward(Args... args) {
    layer_epilogue_backward_cpu(args...);
  }
  template <typename... Args>
  static void scale_channels(Args... args) {
    scale_channels_cpu(args...);
  }
  template <typename... Args>
  static void scale_channels_backward(Args... args) {
    scale_channels_backward_cpu(args...);
  }
  template <typename... Args>
  static void sum_strips(Args... args) {
    sum_strips_cpu(args...);
  }
  template <typename... Args>
  static void bias_act_backward_sum(Args... args) {
    bias_act_backward_sum_cpu(args...);
  }
  template <typename... Args>
  static void bias_act(Args... args) {
    bias_act_cpu(args...);
  }
  template <typename... Args>
  static void bias_act_backward(Args... args) {
    bias_act_backward_cpu(args...);
  }
  template <typename... Args>
  static void sample_planes(Args... args) {
    sample_planes_cpu(args...);
  }
  template <typename... Args>
  static void sample_planes_backward(Args... args) {
    sample_planes_backward_cpu(args...);
  }
  template <typename... Args>
  static void sample_planes_slopes(Args... args) {
    sample_planes_slopes_cpu(args...);
  }
  template <typename... Args>
  static void query_field(Args... args) {
    query_field_cpu(args...);
  }
};

// Only CPUs need it: elsewhere the vendor's library computes weight gradients at full speed.
Tensor weight_gradient(const Tensor& small, const Tensor& large, int64_t kernel, int64_t stride, int64_t padding) {
  TORCH_CHECK(small.dim() == 4 && large.dim() == 4 && small.size(0) == large.size(0) &&
                  small.scalar_type() == large.scalar_type(),
              "small, large: expected [B, M, h, w] and [B, N, H, W] of one type, got ", small.sizes(), large.sizes());
  TORCH_CHECK(kernel > 0 && stride > 0 && padding >= 0, "kernel, stride, padding: expected positive numbers");
  const Tensor s = small.contiguous(at::MemoryFormat::ChannelsLast);
  const Tensor l = large.contiguous(at::MemoryFormat::ChannelsLast);
  Tensor weight = at::empty({s.size(1), l.size(1), kernel, kernel}, l.options(), at::MemoryFormat::ChannelsLast);
  const Correlation c{s.size(0), s.size(2), s.size(3), s.size(1), l.size(2), l.size(3), l.size(1),
                      int(kernel), int(stride), int(padding)};
  AT_DISPATCH_FLOATING_TYPES(s.scalar_type(), "next3d::weight_gradient", [&] {
    weight_gradient_cpu(s.const_data_ptr<scalar_t>(), l.const_data_ptr<scalar_t>(), c, weight.data_ptr<scalar_t>());
  });
  return weight;
}

}  // namespace
}  // namespace next3d

TORCH_LIBRARY_IMPL(next3d, CPU, m) {
  next3d::Bindings<next3d::CpuKernels>::register_all(m);
  m.impl("weight_gradient", &next3d::weight_gradient);
}
