// The CUDA kernels, compiled as C++ and run on the CPU thread after thread, under the namespace next3d_emulated.
#define NEXT3D_EMULATE_CUDA
#include "bias_act.cu"
#include "bindings.h"
#include "device_kernels.h"
#include "field.cu"
#include "flood.cu"
#include "interpolate.cu"
#include "planes.cu"
#include "layer_epilogue.cu"
#include "rasterize.cu"
#include "texture_planes.cu"
#include "upfirdn2d.cu"

namespace {

struct NoStream {
  static next3d::Stream get() { return nullptr; }
  static void check() {}
};

}  // namespace

TORCH_LIBRARY_IMPL(next3d_emulated, CPU, m) {
  next3d::Bindings<next3d::DeviceKernels<NoStream>>::register_all(m);
}
