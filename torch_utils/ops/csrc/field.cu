// Planes, decoder and activations in one pass over the points, without gradients.
#include "kernels_planes_cuda.h"

namespace next3d {
namespace {

// One thread per point; `channels` and `num_colors` are constants where they are positive, so that both arrays stay
// in registers.
template <int channels, int num_colors, typename T>
NEXT3D_KERNEL field_kernel(const T* planes, PlaneLayout layout, const float* points, int64_t places, int64_t count,
                           float scale, float gain, Mlp mlp, float* colors, float* sigma) {
  const int size = static_cast<int>(layout.size);
  const int width = channels > 0 ? channels : static_cast<int>(layout.channels);
  const int outputs = num_colors > 0 ? num_colors : static_cast<int>(mlp.colors);
  for (int64_t place = thread_index(); place < places; place += thread_count()) {
    const float* point = points + 3 * place;
    const T* own = planes + place / count * layout.sample_stride;
    float in[channels > 0 ? channels : kMaxChannels], out[num_colors > 0 ? num_colors : kMaxChannels];
    for (int c = 0; c < width; ++c) in[c] = 0.0f;
    for (int c = 0; c < outputs; ++c) out[c] = mlp.out_bias[1 + c];
    for (int plane = 0; plane < 3; ++plane) {
      const auto f = footprint(point[column_axis(plane)] * scale, point[row_axis(plane)] * scale, size);
      if (!f.any) continue;
      for (int corner = 0; corner < 4; ++corner) {
        if (!corner_inside(f, corner, size)) continue;
        const T* texel = own + plane * layout.plane_stride + corner_offset(f, corner, layout);
        const float weight = corner_weight(f, corner) * gain;
        for (int c = 0; c < width; ++c) in[c] += widen(texel[c]) * weight;
      }
    }
    float density = mlp.out_bias[0];
    for (int64_t h = 0; h < mlp.hidden; ++h) {
      float sum = mlp.hidden_bias[h];
      for (int c = 0; c < width; ++c) sum += in[c] * mlp.hidden_weight[h * width + c];
      const float value = field_softplus(sum);
      density += value * mlp.out_weight[h];
      if (colors == nullptr) continue;
      for (int c = 0; c < outputs; ++c) out[c] += value * mlp.out_weight[(1 + c) * mlp.hidden + h];
    }
    sigma[place] = density;
    if (colors == nullptr) continue;
    for (int c = 0; c < outputs; ++c) colors[place * outputs + c] = field_color(out[c]);
  }
}

}  // namespace

template <typename T>
void query_field_cuda(Stream stream, const T* planes, const PlaneLayout& layout, const float* points, int64_t samples,
                      int64_t count, float scale, float gain, const Mlp& mlp, float* colors, float* sigma) {
  const int64_t places = samples * count;
  const auto kernel = layout.channels == 32 && mlp.colors == 32 ? field_kernel<32, 32, T> : field_kernel<0, 0, T>;
  launch(kernel, places, stream, planes, layout, points, places, count, scale, gain, mlp, colors, sigma);
}

#define NEXT3D_INSTANTIATE(T)                                                                                       \
  template void query_field_cuda<T>(Stream, const T*, const PlaneLayout&, const float*, int64_t, int64_t, float,    \
                                    float, const Mlp&, float*, float*);
NEXT3D_INSTANTIATE(float)
NEXT3D_INSTANTIATE(Half)
NEXT3D_INSTANTIATE(BFloat16)
#undef NEXT3D_INSTANTIATE

}  // namespace next3d
