// Argument checks and memory layouts, shared by the CPU and the CUDA bindings. `Kernels` supplies the launchers.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <tuple>

#include "activation_math.h"
#include "bindings_texture.h"
#include "bindings_planes.h"
#include "bindings_epilogue.h"
#include "bindings_types.h"
#include "upfirdn_math.h"

namespace next3d {

inline void check_mesh(const Tensor& vertices, const Tensor& faces) {
  TORCH_CHECK(vertices.dim() == 3 && vertices.size(2) == 3, "vertices: expected [N, V, 3], got ", vertices.sizes());
  TORCH_CHECK(faces.dim() == 2 && faces.size(1) == 3, "faces: expected [F, 3], got ", faces.sizes());
  TORCH_CHECK(faces.scalar_type() == at::kLong, "faces: expected int64, got ", faces.scalar_type());
  TORCH_CHECK(faces.device() == vertices.device(), "faces: on ", faces.device(), ", vertices on ", vertices.device());
}

inline void check_fragments(const Tensor& face_ids, const Tensor& barycentrics, const Tensor& attributes) {
  TORCH_CHECK(face_ids.dim() == 3 && face_ids.scalar_type() == at::kLong && barycentrics.dim() == 4 &&
                  barycentrics.size(3) == 3 && barycentrics.numel() == 3 * face_ids.numel(),
              "fragments: expected int64 [N, H, W] and [N, H, W, 3]");
  TORCH_CHECK(attributes.dim() == 4 && attributes.size(2) == 3 &&
                  (attributes.size(0) == 1 || attributes.size(0) == face_ids.size(0)) &&
                  attributes.scalar_type() == barycentrics.scalar_type(),
              "attributes: expected [N or 1, F, 3, C] of the type of the barycentrics, got ", attributes.sizes());
}

inline Act parse_act(const std::string& name) {
  const char* names[] = {"linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus", "swish"};
  for (int i = 0; i < 9; ++i) {
    if (name == names[i]) return static_cast<Act>(i);
  }
  TORCH_CHECK(false, "act: unknown activation ", name);
}

template <typename A>
ActParams<A> act_params(double alpha, double gain, double clamp) {
  return {A(alpha), A(gain), A(clamp), gain == 0 ? A(0) : A(1 / gain)};
}

// A tensor as [outer, channels, inner] around dimension `dim`.
struct Channels {
  int64_t outer = 1, channels = 1, inner = 1;
};

inline Channels split_channels(const Tensor& x, const std::optional<Tensor>& bias, int64_t dim,
                               at::MemoryFormat format) {
  Channels split;
  if (!bias.has_value()) {
    split.inner = x.numel();
    return split;
  }
  TORCH_CHECK(dim >= 0 && dim < x.dim() && bias->dim() == 1 && bias->size(0) == x.size(dim) &&
                  bias->scalar_type() == x.scalar_type(),
              "b: expected [", x.size(dim), "] of the type of x, got ", bias->sizes());
  split.channels = x.size(dim);
  if (format == at::MemoryFormat::Contiguous) {
    for (int64_t d = 0; d < x.dim(); ++d) (d < dim ? split.outer : split.inner) *= d == dim ? 1 : x.size(d);
  } else {
    split.outer = split.channels == 0 ? 0 : x.numel() / split.channels;
  }
  return split;
}

// A bias along another dimension than the channels needs the plain layout.
inline at::MemoryFormat bias_layout(const Tensor& x, const std::optional<Tensor>& bias, int64_t dim) {
  return bias.has_value() && dim != 1 ? at::MemoryFormat::Contiguous : layout(x);
}

template <typename Kernels>
struct Bindings {
  static std::tuple<Tensor, Tensor, Tensor> rasterize(const Tensor& vertices, const Tensor& faces, int64_t height,
                                                      int64_t width) {
    const c10::DeviceGuard guard(vertices.device());
    check_mesh(vertices, faces);
    const Tensor v = vertices.contiguous(), f = faces.contiguous();
    const int64_t samples = v.size(0);
    Tensor face_ids = at::empty({samples, height, width}, f.options());
    Tensor barycentrics = at::empty({samples, height, width, 3}, v.options());
    Tensor depth = at::empty({samples, height, width}, v.options());
    AT_DISPATCH_FLOATING_TYPES(v.scalar_type(), "next3d::rasterize", [&] {
      Kernels::rasterize(v.const_data_ptr<scalar_t>(), f.const_data_ptr<int64_t>(), samples, v.size(1), f.size(0),
                         static_cast<int>(height), static_cast<int>(width), face_ids.data_ptr<int64_t>(),
                         barycentrics.data_ptr<scalar_t>(), depth.data_ptr<scalar_t>());
    });
    return {barycentrics, depth, face_ids};
  }

  static Tensor rasterize_backward(const Tensor& grad_barycentrics, const Tensor& grad_depth, const Tensor& face_ids,
                                   const Tensor& vertices, const Tensor& faces) {
    const c10::DeviceGuard guard(vertices.device());
    check_mesh(vertices, faces);
    const Tensor v = vertices.contiguous(), f = faces.contiguous(), ids = face_ids.contiguous();
    const Tensor gb = grad_barycentrics.contiguous(), gd = grad_depth.contiguous();
    TORCH_CHECK(ids.dim() == 3 && ids.size(0) == v.size(0) && gb.numel() == 3 * ids.numel() &&
                    gd.numel() == ids.numel() && gb.scalar_type() == v.scalar_type() &&
                    gd.scalar_type() == v.scalar_type(),
                "rasterize_backward: gradients and face ids do not match");
    Tensor grad_vertices = at::zeros_like(v);
    AT_DISPATCH_FLOATING_TYPES(v.scalar_type(), "next3d::rasterize_backward", [&] {
      Kernels::rasterize_backward(gb.const_data_ptr<scalar_t>(), gd.const_data_ptr<scalar_t>(),
                                  ids.const_data_ptr<int64_t>(), v.const_data_ptr<scalar_t>(),
                                  f.const_data_ptr<int64_t>(), v.size(0), v.size(1), f.size(0),
                                  static_cast<int>(ids.size(1)), static_cast<int>(ids.size(2)),
                                  grad_vertices.data_ptr<scalar_t>());
    });
    return grad_vertices;
  }

  static Tensor interpolate(const Tensor& face_ids, const Tensor& barycentrics, const Tensor& attributes) {
    const c10::DeviceGuard guard(face_ids.device());
    check_fragments(face_ids, barycentrics, attributes);
    const Tensor ids = face_ids.contiguous(), b = barycentrics.contiguous(), a = attributes.contiguous();
    Tensor out = at::empty({ids.size(0), ids.size(1), ids.size(2), a.size(3)}, b.options());
    AT_DISPATCH_FLOATING_TYPES(b.scalar_type(), "next3d::interpolate", [&] {
      Kernels::interpolate(ids.const_data_ptr<int64_t>(), b.const_data_ptr<scalar_t>(), a.const_data_ptr<scalar_t>(),
                           ids.size(0), ids.size(1) * ids.size(2), a.size(0), a.size(1), a.size(3),
                           out.data_ptr<scalar_t>());
    });
    return out;
  }

  static std::tuple<Tensor, Tensor> interpolate_backward(const Tensor& grad, const Tensor& face_ids,
                                                         const Tensor& barycentrics, const Tensor& attributes,
                                                         bool of_attributes) {
    const c10::DeviceGuard guard(face_ids.device());
    check_fragments(face_ids, barycentrics, attributes);
    const Tensor ids = face_ids.contiguous(), b = barycentrics.contiguous(), a = attributes.contiguous();
    const Tensor g = grad.contiguous();
    TORCH_CHECK(g.numel() == ids.numel() * a.size(3) && g.scalar_type() == b.scalar_type(),
                "interpolate_backward: the gradient does not match");
    Tensor grad_b = at::empty_like(b), grad_a = of_attributes ? at::zeros_like(a) : at::empty({0}, a.options());
    AT_DISPATCH_FLOATING_TYPES(b.scalar_type(), "next3d::interpolate_backward", [&] {
      scalar_t* sums = of_attributes ? grad_a.data_ptr<scalar_t>() : nullptr;
      Kernels::interpolate_backward(g.const_data_ptr<scalar_t>(), ids.const_data_ptr<int64_t>(),
                                    b.const_data_ptr<scalar_t>(), a.const_data_ptr<scalar_t>(), ids.size(0),
                                    ids.size(1) * ids.size(2), a.size(0), a.size(1), a.size(3),
                                    grad_b.data_ptr<scalar_t>(), sums);
    });
    return {grad_b, grad_a};
  }

  static Tensor upfirdn2d(const Tensor& x, const Tensor& f, int64_t up_x, int64_t up_y, int64_t down_x, int64_t down_y,
                          int64_t left, int64_t right, int64_t top, int64_t bottom, bool correlate, double gain) {
    const c10::DeviceGuard guard(x.device());
    TORCH_CHECK(x.dim() == 4, "x: expected [N, C, H, W], got ", x.sizes());
    TORCH_CHECK(f.dim() == 2 && f.numel() > 0, "f: expected [fh, fw], got ", f.sizes());
    TORCH_CHECK(f.device() == x.device(), "f: on ", f.device(), ", x on ", x.device());
    TORCH_CHECK(up_x > 0 && up_y > 0 && down_x > 0 && down_y > 0, "up, down: expected positive numbers");
    const int64_t rows = (x.size(2) * up_y + top + bottom - f.size(0)) / down_y + 1;
    const int64_t columns = (x.size(3) * up_x + left + right - f.size(1)) / down_x + 1;
    TORCH_CHECK(x.size(2) * up_y + top + bottom >= f.size(0) && x.size(3) * up_x + left + right >= f.size(1),
                "x: smaller than the filter after padding");
    const at::MemoryFormat format = layout(x);
    const bool last = format == at::MemoryFormat::ChannelsLast;
    const Tensor in = x.contiguous(format), taps = f.to(sum_type(x)).contiguous();
    Tensor y = at::empty({x.size(0), x.size(1), rows, columns}, x.options(), format);
    const Axis row_axis{int(up_y), int(down_y), int(top), int(f.size(0)), int(x.size(2)), int(rows)};
    const Axis column_axis{int(up_x), int(down_x), int(left), int(f.size(1)), int(x.size(3)), int(columns)};
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "next3d::upfirdn2d", [&] {
      Kernels::upfirdn2d(in.const_data_ptr<scalar_t>(), taps.const_data_ptr<Sum<scalar_t>>(), correlate, gain,
                         last ? x.size(0) : x.size(0) * x.size(1), last ? x.size(1) : 1, row_axis, column_axis,
                         y.data_ptr<scalar_t>());
    });
    return y;
  }

  static Tensor bias_act(const Tensor& x, const std::optional<Tensor>& b, int64_t dim, std::string act, double alpha,
                         double gain, double clamp) {
    const c10::DeviceGuard guard(x.device());
    const at::MemoryFormat format = bias_layout(x, b, dim);
    const Channels split = split_channels(x, b, dim, format);
    const Tensor in = x.contiguous(format), bias = b.has_value() ? b->contiguous() : Tensor();
    Tensor y = at::empty_like(in, in.options(), format);
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "next3d::bias_act", [&] {
      Kernels::bias_act(in.const_data_ptr<scalar_t>(),
                        bias.defined() ? bias.const_data_ptr<scalar_t>() : static_cast<const scalar_t*>(nullptr),
                        split.outer, split.channels, split.inner, parse_act(act),
                        act_params<Sum<scalar_t>>(alpha, gain, clamp), y.data_ptr<scalar_t>());
    });
    return y;
  }

  static Tensor bias_act_backward(const Tensor& grad, const Tensor& reference, const std::optional<Tensor>& b,
                                  int64_t dim, std::string act, double alpha, double gain, double clamp) {
    const c10::DeviceGuard guard(reference.device());
    TORCH_CHECK(grad.sizes() == reference.sizes() && grad.scalar_type() == reference.scalar_type(),
                "bias_act_backward: gradient and reference do not match");
    const at::MemoryFormat format = bias_layout(reference, b, dim);
    const Channels split = split_channels(reference, b, dim, format);
    const Tensor g = grad.contiguous(format), r = reference.contiguous(format);
    const Tensor bias = b.has_value() ? b->contiguous() : Tensor();
    Tensor grad_x = at::empty_like(r, r.options(), format);
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, r.scalar_type(), "next3d::bias_act_backward", [&] {
      Kernels::bias_act_backward(
          g.const_data_ptr<scalar_t>(), r.const_data_ptr<scalar_t>(),
          bias.defined() ? bias.const_data_ptr<scalar_t>() : static_cast<const scalar_t*>(nullptr), split.outer,
          split.channels, split.inner, parse_act(act), act_params<Sum<scalar_t>>(alpha, gain, clamp),
          grad_x.data_ptr<scalar_t>());
    });
    return grad_x;
  }

  static std::tuple<Tensor, Tensor> bias_act_backward_sum(const Tensor& grad, const Tensor& reference,
                                                          const std::optional<Tensor>& b, int64_t dim, std::string act,
                                                          double alpha, double gain, double clamp) {
    const c10::DeviceGuard guard(reference.device());
    TORCH_CHECK(grad.sizes() == reference.sizes() && grad.scalar_type() == reference.scalar_type(),
                "bias_act_backward_sum: gradient and reference do not match");
    TORCH_CHECK(dim >= 0 && dim < reference.dim(), "dim: expected a dimension of the reference, got ", dim);
    Tensor grad_b = at::empty({reference.size(dim)}, reference.options());
    const at::MemoryFormat format = bias_layout(reference, grad_b, dim);
    const Channels split = split_channels(reference, grad_b, dim, format);
    const Tensor g = grad.contiguous(format), r = reference.contiguous(format);
    const Tensor bias = b.has_value() ? b->contiguous() : Tensor();
    TORCH_CHECK(!b.has_value() || (b->sizes() == grad_b.sizes() && b->scalar_type() == grad_b.scalar_type()),
                "b: expected [", split.channels, "] of the type of the reference");
    Tensor grad_x = at::empty_like(r, r.options(), format);
    const int64_t strips = strip_count(split.outer * split.inner);
    const auto wide = r.options().dtype(sum_type(r));
    Tensor strip_sums = at::empty({strips, split.channels}, wide), sums = at::empty({split.channels}, wide);
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, r.scalar_type(), "next3d::bias_act_backward_sum", [&] {
      using A = Sum<scalar_t>;
      Kernels::bias_act_backward_sum(
          g.const_data_ptr<scalar_t>(), r.const_data_ptr<scalar_t>(),
          bias.defined() ? bias.const_data_ptr<scalar_t>() : static_cast<const scalar_t*>(nullptr), split.outer,
          split.channels, split.inner, parse_act(act), act_params<A>(alpha, gain, clamp), grad_x.data_ptr<scalar_t>(),
          strip_sums.data_ptr<A>());
      Kernels::sum_strips(static_cast<const A*>(strip_sums.const_data_ptr<A>()), int64_t(1), strips, split.channels,
                          sums.data_ptr<A>());
    });
    return {grad_x, grad_b.copy_(sums)};
  }

  static void register_all(torch::Library& m) {
    m.impl("rasterize", &rasterize);
    m.impl("rasterize_backward", &rasterize_backward);
    m.impl("interpolate", &interpolate);
    m.impl("interpolate_backward", &interpolate_backward);
    TextureBindings<Kernels>::register_all(m);
    m.impl("upfirdn2d", &upfirdn2d);
    m.impl("bias_act", &bias_act);
    m.impl("bias_act_backward", &bias_act_backward);
    PlaneBindings<Kernels>::register_all(m);
    m.impl("bias_act_backward_sum", &bias_act_backward_sum);
    EpilogueBindings<Kernels>::register_all(m);
  }
};

}  // namespace next3d
