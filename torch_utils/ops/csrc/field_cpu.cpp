// Planes, decoder and activations in one pass over the points, without gradients: blocks of points stay in the cache.
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "kernels_planes.h"
#include "planes_cpu.h"

namespace next3d {
namespace {

constexpr int kWidest = 4;  // vectors of outputs that a tile sums at once
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRows = 6;  // points that a tile sums at once: kRows * kWidest sums fit 32 registers
#else
constexpr int kRows = 2;  // 16 registers
#endif
constexpr int64_t kBlock = 24;  // points; a multiple of kRows
constexpr int64_t kGrain = 1024;
constexpr int kLanes = kWidth<float>;

int64_t padded(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// Zeros at an address that whole vectors divide.
class Buffer {
 public:
  explicit Buffer(int64_t count) : store_(count + kLanes) {}
  float* data() {
    const auto offset = reinterpret_cast<uintptr_t>(store_.data()) % kVectorBytes;
    return store_.data() + (kVectorBytes - offset) % kVectorBytes / sizeof(float);
  }

 private:
  std::vector<float> store_;
};

// One layer's weights as [inputs, padded outputs], then the bias.
struct Layer {
  int64_t inputs, outputs, stride;
  Buffer buffer;
  Layer(const float* weight, const float* bias, int64_t in, int64_t out)
      : inputs(in), outputs(out), stride(padded(out)), buffer((in + 1) * padded(out)) {
    float* packed = buffer.data();
    for (int64_t o = 0; o < out; ++o) {
      for (int64_t i = 0; i < in; ++i) packed[i * stride + o] = weight[o * in + i];
      packed[in * stride + o] = bias[o];
    }
  }
};

// out [kRows, vectors] = in [kRows, inputs] times `weight`, plus the bias in the last row of `weight`.
template <int vectors>
inline void tile(const float* in, int64_t in_stride, int64_t inputs, const float* weight, int64_t stride, float* out,
                 int64_t out_stride) {
  Floats sums[kRows][vectors];
#pragma GCC unroll 8
  for (int v = 0; v < vectors; ++v) {
    const Floats bias = load<float>(weight + inputs * stride + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) sums[r][v] = bias;
  }
  for (int64_t i = 0; i < inputs; ++i) {
    Floats w[vectors];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) w[v] = load<float>(weight + i * stride + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Floats x = splat(in[r * in_stride + i]);
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) sums[r][v] = multiply_add(x, w[v], sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) store(out + r * out_stride + v * kLanes, sums[r][v]);
  }
}

// out [kBlock, layer.stride] of in [kBlock, in_stride].
void apply(Layer& layer, const float* in, int64_t in_stride, float* out) {
  const float* weight = layer.buffer.data();
  const int64_t stride = layer.stride;
  for (int64_t column = 0; column < stride; column += kWidest * kLanes) {
    const int64_t vectors = std::min<int64_t>(kWidest, (stride - column) / kLanes);
    for (int64_t r = 0; r < kBlock; r += kRows) {
      const float* rows = in + r * in_stride;
      float* to = out + r * stride + column;
      switch (vectors) {
        case 1: tile<1>(rows, in_stride, layer.inputs, weight + column, stride, to, stride); break;
        case 2: tile<2>(rows, in_stride, layer.inputs, weight + column, stride, to, stride); break;
        case 3: tile<3>(rows, in_stride, layer.inputs, weight + column, stride, to, stride); break;
        default: tile<kWidest>(rows, in_stride, layer.inputs, weight + column, stride, to, stride);
      }
    }
  }
}

}  // namespace

template <typename T>
void query_field_cpu(const T* planes, const PlaneLayout& layout, const float* points, int64_t samples, int64_t count,
                     float scale, float gain, const Mlp& mlp, float* colors, float* sigma) {
  Layer first(mlp.hidden_weight, mlp.hidden_bias, layout.channels, mlp.hidden);
  Layer second(mlp.out_weight + mlp.hidden, mlp.out_bias + 1, mlp.hidden, mlp.colors);
  const int64_t in_stride = padded(layout.channels), hidden = first.stride;
  Buffer density_buffer(hidden);  // the row of sigma, zeros behind it
  float* density = density_buffer.data();
  std::copy(mlp.out_weight, mlp.out_weight + mlp.hidden, density);
  at::parallel_for(0, samples * count, kGrain, [&](int64_t begin, int64_t end) {
    Buffer inputs(kBlock * in_stride), middle(kBlock * hidden), outputs(kBlock * second.stride);
    float *in = inputs.data(), *mid = middle.data(), *out = outputs.data();
    for (int64_t start = begin; start < end; start += kBlock) {
      const int64_t rows = std::min(kBlock, end - start);
      for (int64_t r = 0; r < rows; ++r) {
        const T* own = planes + (start + r) / count * layout.sample_stride;
        sample_point(own, layout, points + 3 * (start + r), scale, gain, in + r * in_stride);
      }
      apply(first, in, in_stride, mid);
      for (int64_t r = 0; r < rows; ++r) {
        Floats sum{};
        for (int64_t h = 0; h < hidden; h += kLanes) {
          const Floats value = softplus(load<float>(mid + r * hidden + h));
          store(mid + r * hidden + h, value);
          sum = multiply_add(value, load<float>(density + h), sum);
        }
        sigma[start + r] = add_lanes<float>(sum) + mlp.out_bias[0];
      }
      if (colors == nullptr) continue;
      apply(second, mid, hidden, out);
      for (int64_t r = 0; r < rows; ++r) {
        float* row = out + r * second.stride;
        for (int64_t c = 0; c < second.stride; c += kLanes) {
          store(row + c, multiply_add(sigmoid(load<float>(row + c)), splat(1 + 2 * kColorMargin),
                                      splat(-kColorMargin)));
        }
        std::copy(row, row + mlp.colors, colors + (start + r) * mlp.colors);
      }
    }
  });
}

#define NEXT3D_INSTANTIATE(T)                                                                                        \
  template void query_field_cpu<T>(const T*, const PlaneLayout&, const float*, int64_t, int64_t, float, float, const \
                                   Mlp&, float*, float*);
NEXT3D_INSTANTIATE(float)
NEXT3D_INSTANTIATE(c10::Half)
NEXT3D_INSTANTIATE(c10::BFloat16)
#undef NEXT3D_INSTANTIATE

}  // namespace next3d
