// Argument checks and memory layouts of the planes' ops; part of bindings.h.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <tuple>
#include <type_traits>

#include "field_math.h"
#include "planes_math.h"

namespace next3d {

inline at::ScalarType plane_sum_type(const at::Tensor& planes) {
  return planes.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

inline void check_planes(const at::Tensor& planes, const at::Tensor& points) {
  TORCH_CHECK(planes.dim() == 5 && planes.size(1) == 3 && planes.size(3) == planes.size(4) && planes.size(3) > 0,
              "planes: expected [N, 3, C, R, R], got ", planes.sizes());
  TORCH_CHECK(points.dim() == 3 && points.size(0) == planes.size(0) && points.size(2) == 3, "points: expected [",
              planes.size(0), ", M, 3], got ", points.sizes());
  TORCH_CHECK(points.scalar_type() == plane_sum_type(planes), "points: expected ", plane_sum_type(planes), ", got ",
              points.scalar_type());
  TORCH_CHECK(points.device() == planes.device(), "points: on ", points.device(), ", planes on ", planes.device());
}

// The planes themselves where their channels are adjacent in memory, else a copy for which that holds.
inline at::Tensor adjacent_channels(const at::Tensor& planes) {
  if (planes.stride(2) == 1) return planes;
  return planes.permute({0, 1, 3, 4, 2}).contiguous().permute({0, 1, 4, 2, 3});
}

inline PlaneLayout plane_layout(const at::Tensor& planes) {
  return {planes.size(2),   planes.size(3),   planes.stride(0),
          planes.stride(1), planes.stride(3), planes.stride(4)};
}

template <typename Kernels>
struct PlaneBindings {
  using Tensor = at::Tensor;
  template <typename T>
  using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

  static Tensor sample_planes(const Tensor& planes, const Tensor& points, double scale, double gain) {
    const c10::DeviceGuard guard(planes.device());
    check_planes(planes, points);
    const Tensor from = adjacent_channels(planes), places = points.contiguous();
    Tensor out = at::empty({places.size(0), places.size(1), planes.size(2)}, places.options());
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, planes.scalar_type(), "next3d::sample_planes", [&] {
      using A = Sum<scalar_t>;
      Kernels::sample_planes(from.const_data_ptr<scalar_t>(), plane_layout(from), places.const_data_ptr<A>(),
                             places.size(0), places.size(1), A(scale), A(gain), out.data_ptr<A>());
    });
    return out;
  }

  static std::tuple<Tensor, Tensor> sample_planes_backward(const Tensor& grad, const Tensor& planes,
                                                           const Tensor& points, double scale, double gain,
                                                           bool of_planes, bool of_points) {
    const c10::DeviceGuard guard(planes.device());
    check_planes(planes, points);
    const Tensor g = grad.contiguous(), places = points.contiguous();
    const int64_t samples = planes.size(0), channels = planes.size(2), size = planes.size(3);
    TORCH_CHECK(g.dim() == 3 && g.size(0) == samples && g.size(1) == places.size(1) && g.size(2) == channels &&
                    g.scalar_type() == places.scalar_type(),
                "sample_planes_backward: the gradient does not match");
    Tensor by_planes = at::empty({0}, places.options()), by_points = at::empty({0}, places.options());
    if (of_planes) {
      by_planes = at::zeros({samples, 3, size, size, channels}, places.options()).permute({0, 1, 4, 2, 3});
      AT_DISPATCH_FLOATING_TYPES(places.scalar_type(), "next3d::sample_planes_backward", [&] {
        Kernels::sample_planes_backward(g.const_data_ptr<scalar_t>(), places.const_data_ptr<scalar_t>(), samples,
                                        places.size(1), scalar_t(scale), scalar_t(gain), plane_layout(by_planes),
                                        by_planes.data_ptr<scalar_t>());
      });
    }
    if (of_points) {
      const Tensor from = adjacent_channels(planes);
      by_points = at::empty_like(places);
      AT_DISPATCH_FLOATING_TYPES_AND2(
          at::kHalf, at::kBFloat16, planes.scalar_type(), "next3d::sample_planes_slopes", [&] {
            using A = Sum<scalar_t>;
            Kernels::sample_planes_slopes(g.const_data_ptr<A>(), from.const_data_ptr<scalar_t>(), plane_layout(from),
                                          places.const_data_ptr<A>(), samples, places.size(1), A(scale), A(gain),
                                          by_points.data_ptr<A>());
          });
    }
    return {by_planes.to(planes.scalar_type()), by_points};
  }

  static std::tuple<Tensor, Tensor> query_field(const Tensor& planes, const Tensor& points, double scale, double gain,
                                                const Tensor& hidden_weight, const Tensor& hidden_bias,
                                                const Tensor& out_weight, const Tensor& out_bias, bool of_colors) {
    const c10::DeviceGuard guard(planes.device());
    check_planes(planes, points);
    const Tensor w1 = hidden_weight.contiguous(), b1 = hidden_bias.contiguous();
    const Tensor w2 = out_weight.contiguous(), b2 = out_bias.contiguous();
    TORCH_CHECK(w1.dim() == 2 && w1.size(1) == planes.size(2) && b1.dim() == 1 && b1.size(0) == w1.size(0) &&
                    w2.dim() == 2 && w2.size(1) == w1.size(0) && w2.size(0) > 1 && b2.dim() == 1 &&
                    b2.size(0) == w2.size(0),
                "query_field: the decoder's weights do not fit the planes");
    for (const Tensor& t : {points, w1, b1, w2, b2}) {
      TORCH_CHECK(t.scalar_type() == at::kFloat && t.device() == planes.device(),
                  "query_field: expected float32 weights and points on ", planes.device());
    }
    const Mlp mlp{w1.const_data_ptr<float>(), b1.const_data_ptr<float>(), w2.const_data_ptr<float>(),
                  b2.const_data_ptr<float>(), w1.size(0),                 w2.size(0) - 1};
    TORCH_CHECK(planes.size(2) <= kMaxChannels && mlp.colors <= kMaxChannels, "planes: expected at most ",
                kMaxChannels, " channels and colours");
    const Tensor from = adjacent_channels(planes), places = points.contiguous();
    Tensor sigma = at::empty({places.size(0), places.size(1), 1}, places.options());
    Tensor colors = of_colors ? at::empty({places.size(0), places.size(1), mlp.colors}, places.options())
                              : at::empty({0}, places.options());
    float* color_data = of_colors ? colors.data_ptr<float>() : nullptr;
    const auto run = [&](const auto* data) {
      Kernels::query_field(data, plane_layout(from), places.const_data_ptr<float>(), places.size(0), places.size(1),
                           float(scale), float(gain), mlp, color_data, sigma.data_ptr<float>());
    };
    switch (planes.scalar_type()) {
      case at::kFloat: run(from.const_data_ptr<float>()); break;
      case at::kHalf: run(from.const_data_ptr<at::Half>()); break;
      case at::kBFloat16: run(from.const_data_ptr<at::BFloat16>()); break;
      default: TORCH_CHECK(false, "planes: expected float32, float16 or bfloat16, got ", planes.scalar_type());
    }
    return {colors, sigma};
  }

  static void register_all(torch::Library& m) {
    m.impl("sample_planes", &sample_planes);
    m.impl("sample_planes_backward", &sample_planes_backward);
    m.impl("query_field", &query_field);
  }
};

}  // namespace next3d
