// Types and layouts that all bindings use.
#pragma once

#include <ATen/core/Tensor.h>

#include <type_traits>

namespace next3d {

using at::Tensor;

template <typename T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline at::ScalarType sum_type(const Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// The layout that an op works in and returns: channels-last where the input is unambiguously so (library.layout).
inline at::MemoryFormat layout(const Tensor& x) {
  const bool last = x.dim() == 4 && !x.is_contiguous() && x.is_contiguous(at::MemoryFormat::ChannelsLast);
  return last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

}  // namespace next3d
