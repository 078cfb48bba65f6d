// The epilogue of a StyleGAN2 layer in one pass over memory. Channels-last: a tile of columns is walked row by row, so
// that the four input rows stay in cache; each row's vertical sums serve the four columns that share them.
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "half_bits.h"
#include "kernels_cpu.h"

namespace next3d {
namespace {

constexpr int kBandRows = 32;                // output rows of one task
constexpr int64_t kTileSize = 16384;         // elements of one row of a tile

// out[i] = sum_k weights[k] * in[k][i]
template <typename T, typename A>
void combine(const T* const* in, const A* weights, int64_t count, A* __restrict out) {
  const T *a = in[0], *b = in[1], *c = in[2], *d = in[3];
  const A wa = weights[0], wb = weights[1], wc = weights[2], wd = weights[3];
  for (int64_t i = 0; i < count; ++i) {
    out[i] = (wa * widened(a[i]) + wb * widened(b[i])) + (wc * widened(c[i]) + wd * widened(d[i]));
  }
}

// Asks for a row that is read soon.
template <typename T>
void prefetch(const T* at, int64_t count) {
  const char* bytes = reinterpret_cast<const char*>(at);
  for (int64_t i = 0; i < count * int64_t(sizeof(T)); i += 64) __builtin_prefetch(bytes + i, 0, 2);
}

// What one sample needs besides its image; scale [channels] and noise [pixels] or null, bias [channels].
template <typename A>
struct Sample {
  const A* scale;
  const A* noise;
  const A* bias;
  EpilogueParams<A> params;
};

template <typename T, typename A>
class Epilogue {
 public:
  Epilogue(const T* x, const A* taps, const A* scale, const A* noise, const A* bias, const EpilogueSizes& sizes,
           const EpilogueParams<A>& params, T* y)
      : x_(x), scale_(scale), noise_(noise), bias_(bias), sizes_(sizes), params_(params), y_(y) {
    for (int k = 0; k < kEpilogueTaps; ++k) weights_[k] = taps != nullptr ? taps[kEpilogueTaps - 1 - k] : A(0);
    if (scale == nullptr) ones_.assign(sizes.channels, A(1));
    const int64_t row = sizes.channels_last ? (tile_columns() + kEpilogueTaps - 1) * sizes.channels : sizes.in_width;
    if (taps != nullptr) zeros_.assign(row, narrowed<T>(A(0)));
  }

  // Output rows [first, last) of a sample, without filter.
  void plain_last(int64_t sample, int first, int last) const {
    const int64_t channels = sizes_.channels;
    const A* scale = scale_of(sample);
    for (int64_t pixel = int64_t(first) * sizes_.width; pixel < int64_t(last) * sizes_.width; ++pixel) {
      const int64_t offset = (sample * sizes_.pixels() + pixel) * channels;
      const T* in = x_ + offset;
      T* __restrict out = y_ + offset;
      const A shift = noise_at(sample, pixel);
      for (int64_t c = 0; c < channels; ++c) {
        out[c] = narrowed<T>(leaky((widened(in[c]) * scale[c] + shift) + bias_[c], params_));
      }
    }
  }

  void filtered_last(int64_t sample, int first, int last) const {
    const int64_t channels = sizes_.channels, row_size = sizes_.in_width * channels;
    const T* image = x_ + sample * sizes_.in_height * row_size;
    const int tile = tile_columns();
    std::vector<A> sums((tile + kEpilogueTaps - 1) * channels, A(0));
    for (int left = 0; left < sizes_.width; left += tile) {
      const int right = std::min(left + tile, sizes_.width);
      const int begin = std::max(left - 1, 0), end = std::min(right + 2, sizes_.in_width);
      std::fill(sums.begin(), sums.begin() + (begin - left + 1) * channels, A(0));
      std::fill(sums.begin() + (end - left + 1) * channels, sums.end(), A(0));
      for (int row = first; row < last; ++row) {
        const T* in[kEpilogueTaps];
        for (int k = 0; k < kEpilogueTaps; ++k) in[k] = at(image, row - 1 + k, row_size, begin * channels);
        combine(in, weights_, (end - begin) * channels, sums.data() + (begin - left + 1) * channels);
        const T* next = at(image, std::min(row + 3, sizes_.in_height - 1), row_size, 0);
        for (int column = left; column < right; ++column) {
          prefetch(next + std::min(column + 2, sizes_.in_width - 1) * channels, channels);
          finish_last(sums.data() + (column - left) * channels, sample, row, column);
        }
      }
    }
  }

  // Output rows [first, last) of a channel's plane.
  void plain_planar(int64_t sample, int64_t channel, int first, int last) const {
    const int64_t plane = (sample * sizes_.channels + channel) * sizes_.pixels();
    const A scale = scale_of(sample)[channel], bias = bias_[channel];
    const int64_t begin = int64_t(first) * sizes_.width, end = int64_t(last) * sizes_.width;
    const T* in = x_ + plane;
    T* __restrict out = y_ + plane;
    if (noise_ == nullptr) {
      for (int64_t i = begin; i < end; ++i) out[i] = narrowed<T>(leaky(widened(in[i]) * scale + bias, params_));
    } else {
      const A* noise = noise_ + sizes_.noise_offset(sample);
      for (int64_t i = begin; i < end; ++i) {
        out[i] = narrowed<T>(leaky((widened(in[i]) * scale + noise[i]) + bias, params_));
      }
    }
  }

  void filtered_planar(int64_t sample, int64_t channel, int first, int last) const {
    const int64_t plane = sample * sizes_.channels + channel;
    const T* image = x_ + plane * sizes_.in_height * sizes_.in_width;
    const A scale = scale_of(sample)[channel], bias = bias_[channel];
    std::vector<A> sums(sizes_.in_width + 2, A(0)), silence(noise_ == nullptr ? sizes_.width : 0, A(0));
    for (int row = first; row < last; ++row) {
      const T* in[kEpilogueTaps];
      for (int k = 0; k < kEpilogueTaps; ++k) in[k] = at(image, row - 1 + k, sizes_.in_width, 0);
      combine(in, weights_, sizes_.in_width, sums.data() + 1);
      const int64_t offset = int64_t(row) * sizes_.width;
      const A* noise = noise_ == nullptr ? silence.data() : noise_ + sizes_.noise_offset(sample) + offset;
      T* __restrict out = y_ + plane * sizes_.pixels() + offset;
      const A *a = sums.data(), *b = a + 1, *c = a + 2, *d = a + 3;
      const A wa = weights_[0], wb = weights_[1], wc = weights_[2], wd = weights_[3];
      for (int i = 0; i < sizes_.width; ++i) {
        const A sum = (wa * a[i] + wb * b[i]) + (wc * c[i] + wd * d[i]);
        out[i] = narrowed<T>(leaky((sum * scale + noise[i]) + bias, params_));
      }
    }
  }

 private:
  const A* scale_of(int64_t sample) const {
    return scale_ == nullptr ? ones_.data() : scale_ + sample * sizes_.channels;
  }

  A noise_at(int64_t sample, int64_t pixel) const {
    return noise_ == nullptr ? A(0) : noise_[sizes_.noise_offset(sample) + pixel];
  }

  // A row of the image from `offset` on, or zeros outside.
  const T* at(const T* image, int row, int64_t row_size, int64_t offset) const {
    return row >= 0 && row < sizes_.in_height ? image + row * row_size + offset : zeros_.data();
  }

  // Columns of a tile: such that their vertical sums and four input rows stay in cache.
  int tile_columns() const {
    return static_cast<int>(std::clamp<int64_t>(kTileSize / sizes_.channels, 16, sizes_.width));
  }

  // One output pixel from the vertical sums of the column before it and so on.
  void finish_last(const A* sums, int64_t sample, int row, int column) const {
    const int64_t channels = sizes_.channels, pixel = int64_t(row) * sizes_.width + column;
    const A* __restrict scale = scale_of(sample);
    const A* __restrict bias = bias_;
    const A shift = noise_at(sample, pixel);
    const A* __restrict a = sums;
    const A* __restrict b = a + channels;
    const A* __restrict c = b + channels;
    const A* __restrict d = c + channels;
    const A wa = weights_[0], wb = weights_[1], wc = weights_[2], wd = weights_[3];
    const EpilogueParams<A> params = params_;
    T* __restrict out = y_ + (sample * sizes_.pixels() + pixel) * channels;
    for (int64_t i = 0; i < channels; ++i) {
      const A sum = (wa * a[i] + wb * b[i]) + (wc * c[i] + wd * d[i]);
      out[i] = narrowed<T>(leaky((sum * scale[i] + shift) + bias[i], params));
    }
  }

  const T* x_;
  const A *scale_, *noise_, *bias_;
  EpilogueSizes sizes_;
  EpilogueParams<A> params_;
  T* y_;
  A weights_[kEpilogueTaps];
  std::vector<A> ones_;
  std::vector<T> zeros_;
};

// Where one strip of pixels adds up: `bias` and `scaled` [channels], the sums of the gradient before the activation,
// alone and times (argument - noise - bias).
template <typename A>
struct StripSums {
  A* bias;
  A* scaled;
};

template <typename T, typename A>
void backward_last(const T* grad, const T* y, const Sample<A>& of, int64_t channels, int64_t pixel,
                   const StripSums<A>& sums, T* __restrict filtered, A* noise_sum) {
  const A shift = of.noise == nullptr ? A(0) : of.noise[pixel];
  const A *scale = of.scale, *bias = of.bias;
  A *__restrict by_bias = sums.bias, *__restrict by_scale = sums.scaled;
  const EpilogueParams<A> params = of.params;
  A total = A(0);
#pragma omp simd reduction(+ : total)
  for (int64_t c = 0; c < channels; ++c) {
    const A value = widened(y[c]);
    const A g = widened(grad[c]) * leaky_slope(value, params);
    filtered[c] = narrowed<T>(g * scale[c]);
    by_bias[c] += g;
    by_scale[c] += g * ((leaky_argument(value, params) - shift) - bias[c]);
    total += g;
  }
  *noise_sum = total;
}

// Pixels [0, count) of one channel's plane; adds to noise_sum [count].
template <typename T, typename A>
void backward_planar(const T* grad, const T* y, const Sample<A>& of, int64_t channel, int64_t count,
                     const StripSums<A>& sums, T* __restrict filtered, A* __restrict noise_sum) {
  const A scale = of.scale[channel], bias = of.bias[channel];
  const A* noise = of.noise;
  const EpilogueParams<A> params = of.params;
  A by_bias = A(0), by_scale = A(0);
#pragma omp simd reduction(+ : by_bias, by_scale)
  for (int64_t i = 0; i < count; ++i) {
    const A value = widened(y[i]);
    const A g = widened(grad[i]) * leaky_slope(value, params);
    filtered[i] = narrowed<T>(g * scale);
    noise_sum[i] += g;
    by_bias += g;
    by_scale += g * ((leaky_argument(value, params) - noise[i]) - bias);
  }
  sums.bias[channel] = by_bias;
  sums.scaled[channel] = by_scale;
}

}  // namespace

template <typename T>
void layer_epilogue_cpu(const T* x, const typename Accumulator<T>::type* taps,
                        const typename Accumulator<T>::type* scale, const typename Accumulator<T>::type* noise,
                        const typename Accumulator<T>::type* bias, const EpilogueSizes& sizes,
                        const EpilogueParams<typename Accumulator<T>::type>& params, T* y) {
  using A = typename Accumulator<T>::type;
  const Epilogue<T, A> work(x, taps, scale, noise, bias, sizes, params, y);
  const int64_t bands = (sizes.height + kBandRows - 1) / kBandRows;
  const int64_t images = sizes.channels_last ? sizes.samples : sizes.samples * sizes.channels;
  const int64_t size = kBandRows * sizes.width * (sizes.channels_last ? sizes.channels : 1);
  at::parallel_for(0, images * bands, std::max<int64_t>(1, 32768 / size), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / bands;
      const int first = static_cast<int>(task % bands) * kBandRows, last = std::min(first + kBandRows, sizes.height);
      if (sizes.channels_last) {
        taps != nullptr ? work.filtered_last(image, first, last) : work.plain_last(image, first, last);
      } else {
        const int64_t sample = image / sizes.channels, channel = image % sizes.channels;
        taps != nullptr ? work.filtered_planar(sample, channel, first, last)
                        : work.plain_planar(sample, channel, first, last);
      }
    }
  });
}

template <typename T>
void layer_epilogue_backward_cpu(const T* grad, const T* y, const typename Accumulator<T>::type* scale,
                                 const typename Accumulator<T>::type* noise,
                                 const typename Accumulator<T>::type* bias, const EpilogueSizes& sizes,
                                 const EpilogueParams<typename Accumulator<T>::type>& params, T* grad_filtered,
                                 typename Accumulator<T>::type* grad_noise,
                                 typename Accumulator<T>::type* strip_sums) {
  using A = typename Accumulator<T>::type;
  const int64_t channels = sizes.channels, pixels = sizes.pixels(), strips = sizes.strips();
  const std::vector<A> ones(scale == nullptr ? channels : 0, A(1));
  const std::vector<A> silence(noise == nullptr ? kStripPixels : 0, A(0));
  at::parallel_for(0, sizes.samples * strips, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> unwanted(grad_filtered == nullptr ? std::max(channels, kStripPixels) : 0);
    std::vector<A> noise_sums(kStripPixels);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t sample = task / strips, first = task % strips * kStripPixels;
      const int64_t count = std::min(kStripPixels, pixels - first);
      const A* shift = noise == nullptr ? silence.data() : noise + sizes.noise_offset(sample) + first;
      const Sample<A> of{scale == nullptr ? ones.data() : scale + sample * channels, shift, bias, params};
      A* sums = strip_sums + task * 2 * channels;
      std::fill(sums, sums + 2 * channels, A(0));
      std::fill(noise_sums.begin(), noise_sums.end(), A(0));
      const StripSums<A> strip{sums, sums + channels};
      for (int64_t i = 0; i < (sizes.channels_last ? count : channels); ++i) {
        const int64_t at = sizes.channels_last ? sizes.at(sample, 0, first + i) : sizes.at(sample, i, first);
        T* filtered = grad_filtered == nullptr ? unwanted.data() : grad_filtered + at;
        if (sizes.channels_last) {
          backward_last(grad + at, y + at, of, channels, i, strip, filtered, &noise_sums[i]);
        } else {
          backward_planar(grad + at, y + at, of, i, count, strip, filtered, noise_sums.data());
        }
      }
      if (grad_noise != nullptr) {
        std::copy(noise_sums.begin(), noise_sums.begin() + count, grad_noise + sample * pixels + first);
      }
    }
  });
}

template <typename T>
void scale_channels_cpu(const T* x, const typename Accumulator<T>::type* scale, const EpilogueSizes& sizes, T* y) {
  const int64_t channels = sizes.channels, pixels = sizes.pixels(), strips = sizes.strips();
  at::parallel_for(0, sizes.samples * strips, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t sample = task / strips, first = task % strips * kStripPixels;
      const int64_t count = std::min(kStripPixels, pixels - first);
      const auto* factors = scale + sample * channels;
      for (int64_t i = 0; i < (sizes.channels_last ? count : channels); ++i) {
        const int64_t at = sizes.channels_last ? sizes.at(sample, 0, first + i) : sizes.at(sample, i, first);
        const T* in = x + at;
        T* __restrict out = y + at;
        if (sizes.channels_last) {
          for (int64_t c = 0; c < channels; ++c) out[c] = narrowed<T>(widened(in[c]) * factors[c]);
        } else {
          const auto factor = factors[i];
          for (int64_t p = 0; p < count; ++p) out[p] = narrowed<T>(widened(in[p]) * factor);
        }
      }
    }
  });
}

template <typename T>
void scale_channels_backward_cpu(const T* grad, const T* x, const typename Accumulator<T>::type* scale,
                                 const EpilogueSizes& sizes, T* grad_x,
                                 typename Accumulator<T>::type* strip_sums) {
  using A = typename Accumulator<T>::type;
  const int64_t channels = sizes.channels, pixels = sizes.pixels(), strips = sizes.strips();
  at::parallel_for(0, sizes.samples * strips, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t sample = task / strips, first = task % strips * kStripPixels;
      const int64_t count = std::min(kStripPixels, pixels - first);
      const A* factors = scale + sample * channels;
      A* __restrict sums = strip_sums + task * channels;
      std::fill(sums, sums + channels, A(0));
      for (int64_t i = 0; i < (sizes.channels_last ? count : channels); ++i) {
        const int64_t at = sizes.channels_last ? sizes.at(sample, 0, first + i) : sizes.at(sample, i, first);
        const T *in = x + at, *g = grad + at;
        T* __restrict out = grad_x + at;
        if (sizes.channels_last) {
          for (int64_t c = 0; c < channels; ++c) {
            const A value = widened(g[c]);
            out[c] = narrowed<T>(value * factors[c]);
            sums[c] += value * widened(in[c]);
          }
        } else {
          const A factor = factors[i];
          A sum = A(0);
#pragma omp simd reduction(+ : sum)
          for (int64_t p = 0; p < count; ++p) {
            const A value = widened(g[p]);
            out[p] = narrowed<T>(value * factor);
            sum += value * widened(in[p]);
          }
          sums[i] = sum;
        }
      }
    }
  });
}

template <typename A>
void sum_strips_cpu(const A* strip_sums, int64_t samples, int64_t strips, int64_t width, A* sums) {
  const int64_t block = 64;
  const int64_t blocks = (width + block - 1) / block;
  at::parallel_for(0, samples * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t sample = task / blocks, first = task % blocks * block, count = std::min(block, width - first);
      double total[block] = {};
      for (int64_t strip = 0; strip < strips; ++strip) {
        const A* row = strip_sums + (sample * strips + strip) * width + first;
        for (int64_t i = 0; i < count; ++i) total[i] += static_cast<double>(row[i]);
      }
      for (int64_t i = 0; i < count; ++i) sums[sample * width + first + i] = static_cast<A>(total[i]);
    }
  });
}

#define NEXT3D_INSTANTIATE(T)                                                                                       \
  template void layer_epilogue_cpu<T>(const T*, const Accumulator<T>::type*, const Accumulator<T>::type*,           \
                                      const Accumulator<T>::type*, const Accumulator<T>::type*,                     \
                                      const EpilogueSizes&, const EpilogueParams<Accumulator<T>::type>&, T*);       \
  template void layer_epilogue_backward_cpu<T>(                                                                     \
      const T*, const T*, const Accumulator<T>::type*, const Accumulator<T>::type*, const Accumulator<T>::type*,    \
      const EpilogueSizes&, const EpilogueParams<Accumulator<T>::type>&, T*, Accumulator<T>::type*,                 \
      Accumulator<T>::type*);                                                                                       \
  template void scale_channels_cpu<T>(const T*, const Accumulator<T>::type*, const EpilogueSizes&, T*);             \
  template void scale_channels_backward_cpu<T>(const T*, const T*, const Accumulator<T>::type*,                     \
                                               const EpilogueSizes&, T*, Accumulator<T>::type*);
NEXT3D_INSTANTIATE(float)
NEXT3D_INSTANTIATE(double)
NEXT3D_INSTANTIATE(c10::Half)
NEXT3D_INSTANTIATE(c10::BFloat16)
#undef NEXT3D_INSTANTIATE
template void sum_strips_cpu<float>(const float*, int64_t, int64_t, int64_t, float*);
template void sum_strips_cpu<double>(const double*, int64_t, int64_t, int64_t, double*);

}  // namespace next3d
