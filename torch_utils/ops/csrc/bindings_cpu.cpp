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

}  // namespace
}  // namespace next3d

TORCH_LIBRARY_IMPL(next3d, CPU, m) { next3d::Bindings<next3d::CpuKernels>::register_all(m); }
