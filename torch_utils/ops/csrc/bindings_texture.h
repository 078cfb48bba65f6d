// Argument checks of the ops that read a texture through fragments, shared by the CPU and the CUDA bindings.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "texture_math.h"

namespace next3d {

template <typename Kernels>
struct TextureBindings {
  using Tensor = at::Tensor;

  static void check(const Tensor& face_ids, const Tensor& barycentrics, const Tensor& face_uv) {
    TORCH_CHECK(face_ids.dim() == 3 && face_ids.scalar_type() == at::kLong && barycentrics.dim() == 4 &&
                    barycentrics.size(3) == 3 && barycentrics.numel() == 3 * face_ids.numel(),
                "fragments: expected int64 [N, H, W] and [N, H, W, 3]");
    TORCH_CHECK(face_uv.dim() == 3 && face_uv.size(1) == 3 && face_uv.size(2) == 2 &&
                    face_uv.scalar_type() == barycentrics.scalar_type(),
                "face_uv: expected [F, 3, 2] of the type of the barycentrics, got ", face_uv.sizes());
    TORCH_CHECK(barycentrics.device() == face_ids.device() && face_uv.device() == face_ids.device(),
                "fragments and face_uv: expected one device");
  }

  static ViewsToPlanes make_shape(const Tensor& face_ids, const Tensor& barycentrics, const Tensor& face_uv,
                                  const Tensor& texture, at::IntArrayRef slots, at::IntArrayRef mirrors,
                                  bool background) {
    check(face_ids, barycentrics, face_uv);
    ViewsToPlanes s{};
    s.views = static_cast<int>(slots.size());
    TORCH_CHECK(s.views >= 1 && s.views <= kMaxViews && mirrors.size() == slots.size(),
                "slots, mirrors: expected 1 to 8 numbers each, as many of one as of the other");
    TORCH_CHECK(texture.dim() == 4 && texture.size(0) * s.views == face_ids.size(0) && texture.size(2) > 0 &&
                    texture.size(3) > 0 && texture.scalar_type() == barycentrics.scalar_type() &&
                    texture.device() == face_ids.device(),
                "texture: expected [N, C, T, T] like the fragments, got ", texture.sizes());
    for (int view = 0; view < s.views; ++view) {
      TORCH_CHECK(slots[view] >= 0 && slots[view] < kMaxViews && mirrors[view] >= 0 && mirrors[view] <= 2,
                  "slots, mirrors: expected planes in [0, 8) and mirrors in [0, 2]");
      s.slot[view] = static_cast<int>(slots[view]);
      s.mirror[view] = static_cast<int>(mirrors[view]);
      s.planes = std::max(s.planes, s.slot[view] + 1);
    }
    s.samples = texture.size(0), s.num_faces = face_uv.size(0), s.channels = texture.size(1);
    s.height = static_cast<int>(face_ids.size(1)), s.width = static_cast<int>(face_ids.size(2));
    s.texture_height = static_cast<int>(texture.size(2)), s.texture_width = static_cast<int>(texture.size(3));
    s.background = background;
    return s;
  }

  static Tensor texture_planes(const Tensor& face_ids, const Tensor& barycentrics, const Tensor& face_uv,
                               const Tensor& texture, at::IntArrayRef slots, at::IntArrayRef mirrors,
                               bool background) {
    const c10::DeviceGuard guard(face_ids.device());
    const ViewsToPlanes s = make_shape(face_ids, barycentrics, face_uv, texture, slots, mirrors, background);
    const Tensor ids = face_ids.contiguous(), b = barycentrics.contiguous(), uv = face_uv.contiguous();
    const Tensor t = texture.permute({0, 2, 3, 1}).contiguous();
    Tensor out = at::empty({s.samples, s.planes, s.height, s.width, s.channels}, t.options());
    AT_DISPATCH_FLOATING_TYPES(t.scalar_type(), "next3d::texture_planes", [&] {
      Kernels::texture_planes(s, ids.const_data_ptr<int64_t>(), b.const_data_ptr<scalar_t>(),
                              uv.const_data_ptr<scalar_t>(), t.const_data_ptr<scalar_t>(), out.data_ptr<scalar_t>());
    });
    return out;
  }

  static std::tuple<Tensor, Tensor> texture_planes_backward(const Tensor& grad, const Tensor& face_ids,
                                                            const Tensor& barycentrics, const Tensor& face_uv,
                                                            const Tensor& texture, at::IntArrayRef slots,
                                                            at::IntArrayRef mirrors, bool background, bool of_texture,
                                                            bool of_barycentrics) {
    const c10::DeviceGuard guard(face_ids.device());
    const ViewsToPlanes s = make_shape(face_ids, barycentrics, face_uv, texture, slots, mirrors, background);
    const Tensor ids = face_ids.contiguous(), b = barycentrics.contiguous(), uv = face_uv.contiguous();
    const Tensor t = texture.permute({0, 2, 3, 1}).contiguous(), g = grad.contiguous();
    TORCH_CHECK(g.numel() == s.samples * s.planes * s.pixels() * s.channels && g.scalar_type() == t.scalar_type(),
                "texture_planes_backward: the gradient does not match");
    Tensor grad_t = of_texture ? at::zeros(t.sizes(), t.options()) : at::empty({0}, t.options());
    Tensor grad_b = of_barycentrics ? at::empty(b.sizes(), b.options()) : at::empty({0}, b.options());
    AT_DISPATCH_FLOATING_TYPES(t.scalar_type(), "next3d::texture_planes_backward", [&] {
      Kernels::texture_planes_backward(s, g.const_data_ptr<scalar_t>(), ids.const_data_ptr<int64_t>(),
                                       b.const_data_ptr<scalar_t>(), uv.const_data_ptr<scalar_t>(),
                                       t.const_data_ptr<scalar_t>(),
                                       of_texture ? grad_t.data_ptr<scalar_t>() : static_cast<scalar_t*>(nullptr),
                                       of_barycentrics ? grad_b.data_ptr<scalar_t>() : static_cast<scalar_t*>(nullptr));
    });
    return {of_texture ? grad_t.permute({0, 3, 1, 2}) : grad_t, grad_b};
  }

  static Tensor sample_mask(const Tensor& face_ids, const Tensor& barycentrics, const Tensor& face_uv,
                            const Tensor& mask) {
    const c10::DeviceGuard guard(face_ids.device());
    check(face_ids, barycentrics, face_uv);
    TORCH_CHECK(mask.dim() == 2 && mask.numel() > 0 && mask.scalar_type() == barycentrics.scalar_type(),
                "mask: expected [H, W] of the type of the barycentrics, got ", mask.sizes());
    const Tensor ids = face_ids.contiguous(), b = barycentrics.contiguous(), uv = face_uv.contiguous();
    const Tensor m = mask.contiguous();
    Tensor out = at::empty(ids.sizes(), b.options());
    AT_DISPATCH_FLOATING_TYPES(b.scalar_type(), "next3d::sample_mask", [&] {
      Kernels::sample_mask(ids.const_data_ptr<int64_t>(), b.const_data_ptr<scalar_t>(), uv.const_data_ptr<scalar_t>(),
                           m.const_data_ptr<scalar_t>(), ids.numel(), uv.size(0), static_cast<int>(m.size(0)),
                           static_cast<int>(m.size(1)), out.data_ptr<scalar_t>());
    });
    return out;
  }

  static Tensor fill_holes(const Tensor& alpha, bool guarded) {
    const c10::DeviceGuard guard(alpha.device());
    TORCH_CHECK(alpha.dim() == 3, "alpha: expected [N, H, W], got ", alpha.sizes());
    const Tensor a = alpha.contiguous();
    Tensor out = at::empty(a.sizes(), a.options()), state = at::empty(a.sizes(), a.options().dtype(at::kByte));
    if (a.numel() == 0) return out;
    AT_DISPATCH_FLOATING_TYPES(a.scalar_type(), "next3d::fill_holes", [&] {
      Kernels::fill_holes(a.const_data_ptr<scalar_t>(), a.size(0), static_cast<int>(a.size(1)),
                          static_cast<int>(a.size(2)), guarded, state.data_ptr<uint8_t>(), out.data_ptr<scalar_t>());
    });
    return out;
  }

  static void register_all(torch::Library& m) {
    m.impl("texture_planes", &texture_planes);
    m.impl("texture_planes_backward", &texture_planes_backward);
    m.impl("sample_mask", &sample_mask);
    m.impl("fill_holes", &fill_holes);
  }
};

}  // namespace next3d
