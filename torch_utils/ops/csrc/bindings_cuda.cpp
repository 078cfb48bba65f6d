// Registers the CUDA kernels under the schemas that the Python modules define.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include "bindings.h"
#include "device_kernels.h"

namespace next3d {
namespace {

struct CurrentStream {
  static Stream get() { return c10::cuda::getCurrentCUDAStream().stream(); }
  static void check() { C10_CUDA_CHECK(cudaGetLastError()); }
};

}  // namespace
}  // namespace next3d

TORCH_LIBRARY_IMPL(next3d, CUDA, m) {
  next3d::Bindings<next3d::DeviceKernels<next3d::CurrentStream>>::register_all(m);
}
