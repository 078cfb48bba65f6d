// Weight gradients of convolutions as products of packed panels.
//
// Both images are packed with rows padded to one common width, so that a tap of the kernel is a constant offset between
// them and one product runs over all pixels of a block of rows:
//
//     result[tap][m][n] += sum over pixels p of small[p][m] * large[p + offset(tap)][n]
//
// For stride 2 the large image is split into its four phases first. `small` lies in panels of 8 channels, `large` in
// panels of up to three vectors: 8 x 3 accumulators stay in registers. Each task owns a range of the result, and adds
// to it in one order, so the result does not depend on the number of threads.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

#include "kernels_cpu.h"

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#include <immintrin.h>
#endif

namespace next3d {
namespace {

constexpr int kRows = 8;         // channels of `small` in a panel
constexpr int kVectors = 3;      // vectors of channels of `large` in a panel
constexpr int64_t kPixels = 288;  // of one product: a panel of `large` stays in the nearest cache
constexpr int64_t kPacked = 512;  // pixels that are packed at once, at least

template <typename T>
constexpr int kLanes = 64 / int(sizeof(T));

struct Free {
  void operator()(void* at) const { std::free(at); }
};

template <typename T>
using Buffer = std::unique_ptr<T[], Free>;

template <typename T>
Buffer<T> buffer(int64_t count) {
  const size_t bytes = (size_t(count) * sizeof(T) + 63) / 64 * 64;
  void* at = std::aligned_alloc(64, std::max<size_t>(bytes, 64));
  if (at == nullptr) throw std::bad_alloc();
  return Buffer<T>(static_cast<T*>(at));
}

// out [8, V * lanes] += sum_p a[p][8] (outer) b[p][V * lanes]
template <typename T, int V>
void multiply(const T* a, const T* b, int64_t pixels, T* out) {
  constexpr int width = V * kLanes<T>;
  T sum[kRows][width] = {};
  for (int64_t p = 0; p < pixels; ++p, a += kRows, b += width) {
    for (int r = 0; r < kRows; ++r) {
      for (int i = 0; i < width; ++i) sum[r][i] += a[r] * b[i];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < width; ++i) out[r * width + i] += sum[r][i];
  }
}

#if defined(__AVX512F__)
template <int V>
void multiply_avx512(const float* a, const float* b, int64_t pixels, float* out) {
  __m512 sum[kRows][V];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) sum[r][v] = _mm512_setzero_ps();
  }
  for (int64_t p = 0; p < pixels; ++p, a += kRows, b += 16 * V) {
    __m512 right[V];
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) right[v] = _mm512_load_ps(b + 16 * v);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512 left = _mm512_set1_ps(a[r]);
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) sum[r][v] = _mm512_fmadd_ps(left, right[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v, out += 16) _mm512_store_ps(out, _mm512_add_ps(_mm512_load_ps(out), sum[r][v]));
  }
}
#define NEXT3D_MULTIPLY multiply_avx512
#elif defined(__AVX2__) && defined(__FMA__)
// Four rows and two registers of columns at a time: what 16 registers hold.
template <int V>
void multiply_avx2(const float* a, const float* b, int64_t pixels, float* out) {
  for (int block = 0; block < 2 * V; ++block) {
    const int row = block % 2 * 4, column = block / 2 * 16;
    __m256 sum[4][2];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    const float *left = a + row, *right = b + column;
    for (int64_t p = 0; p < pixels; ++p, left += kRows, right += 16 * V) {
      const __m256 low = _mm256_load_ps(right), high = _mm256_load_ps(right + 8);
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        const __m256 value = _mm256_broadcast_ss(left + r);
        sum[r][0] = _mm256_fmadd_ps(value, low, sum[r][0]);
        sum[r][1] = _mm256_fmadd_ps(value, high, sum[r][1]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      float* at = out + (row + r) * 16 * V + column;
      _mm256_store_ps(at, _mm256_add_ps(_mm256_load_ps(at), sum[r][0]));
      _mm256_store_ps(at + 8, _mm256_add_ps(_mm256_load_ps(at + 8), sum[r][1]));
    }
  }
}
#define NEXT3D_MULTIPLY multiply_avx2
#endif

#if defined(NEXT3D_MULTIPLY)
template <>
void multiply<float, 1>(const float* a, const float* b, int64_t pixels, float* out) {
  NEXT3D_MULTIPLY<1>(a, b, pixels, out);
}
template <>
void multiply<float, 2>(const float* a, const float* b, int64_t pixels, float* out) {
  NEXT3D_MULTIPLY<2>(a, b, pixels, out);
}
template <>
void multiply<float, 3>(const float* a, const float* b, int64_t pixels, float* out) {
  NEXT3D_MULTIPLY<3>(a, b, pixels, out);
}
#undef NEXT3D_MULTIPLY
#endif

template <typename T>
void multiply_panels(int vectors, const T* a, const T* b, int64_t pixels, T* out) {
  switch (vectors) {
    case 1: return multiply<T, 1>(a, b, pixels, out);
    case 2: return multiply<T, 2>(a, b, pixels, out);
    default: return multiply<T, 3>(a, b, pixels, out);
  }
}

int floor_div(int value, int by) { return (value - ((value % by) + by) % by) / by; }

struct Tap {
  int y, x, phase, row, column;  // of `large`: its phase image, and the shift there
};

struct Panel {
  int64_t first, count;  // channels
  int vectors;
};

// Everything about one call that does not depend on the task.
template <typename T>
struct Plan {
  explicit Plan(const Correlation& c) : c(c) {
    for (int y = 0; y < c.kernel; ++y) {
      for (int x = 0; x < c.kernel; ++x) {
        const int row = floor_div(y - c.padding, c.stride), column = floor_div(x - c.padding, c.stride);
        const int phase = (y - c.padding - row * c.stride) * c.stride + (x - c.padding - column * c.stride);
        taps.push_back({y, x, phase, row, column});
        low = std::min(low, std::min(row, column));
        high = std::max(high, std::max(row, column));
      }
    }
    width = c.small_width + high - low;
    rows = std::min<int64_t>(c.small_height, std::max<int64_t>(4, kPacked / width));
    small_panels = (c.small_channels + kRows - 1) / kRows;
    const int64_t units = (c.large_channels + kLanes<T> - 1) / kLanes<T>, count = (units + kVectors - 1) / kVectors;
    for (int64_t i = 0, unit = 0; i < count; ++i) {
      const int vectors = int((units - unit + count - i - 1) / (count - i));
      const int64_t first = unit * kLanes<T>;
      large_panels.push_back({first, std::min<int64_t>(c.large_channels - first, vectors * kLanes<T>), vectors});
      unit += vectors;
    }
    large_pixels = (rows + high - low) * width + (high - low);
  }

  const Correlation& c;
  std::vector<Tap> taps;
  std::vector<Panel> large_panels;
  int low = 0, high = 0;  // shifts
  int64_t width, rows, small_panels, large_pixels;
};

// The part of the result that belongs to some panels of either image.
template <typename T>
class Task {
 public:
  Task(const Plan<T>& plan, int64_t small_begin, int64_t small_end, int64_t large_begin, int64_t large_end)
      : plan_(plan), small_begin_(small_begin), small_end_(small_end), large_begin_(large_begin), large_end_(large_end) {
    for (int64_t i = large_begin; i < large_end; ++i) vectors_ += plan.large_panels[i].vectors;
    const int64_t phases = plan.c.stride * plan.c.stride, panels = small_end - small_begin;
    small_ = buffer<T>(panels * plan.rows * plan.width * kRows);
    large_ = buffer<T>(phases * vectors_ * kLanes<T> * plan.large_pixels);
    const int64_t results = int64_t(plan.taps.size()) * panels * kRows * vectors_ * kLanes<T>;
    result_ = buffer<T>(results);
    std::fill(result_.get(), result_.get() + results, T(0));
  }

  void run(const T* small, const T* large, T* weight) {
    const Correlation& c = plan_.c;
    for (int64_t sample = 0; sample < c.samples; ++sample) {
      for (int64_t row = 0; row < c.small_height; row += plan_.rows) {
        const int64_t rows = std::min(plan_.rows, c.small_height - row);
        pack_small(small + sample * c.small_height * c.small_width * c.small_channels, row, rows);
        pack_large(large + sample * c.large_height * c.large_width * c.large_channels, row, rows);
        accumulate(rows);
      }
    }
    write(weight);
  }

 private:
  void pack_small(const T* image, int64_t row, int64_t rows) {
    const Correlation& c = plan_.c;
    const int64_t stride = plan_.rows * plan_.width * kRows;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < plan_.width; ++j) {
        T* out = small_.get() + (i * plan_.width + j) * kRows;
        const T* in = image + ((row + i) * c.small_width + j) * c.small_channels;
        for (int64_t panel = small_begin_; panel < small_end_; ++panel, out += stride) {
          const int64_t first = panel * kRows;
          if (j < c.small_width && first + kRows <= c.small_channels) {
            for (int r = 0; r < kRows; ++r) out[r] = in[first + r];
          } else {
            for (int r = 0; r < kRows; ++r) {
              out[r] = j < c.small_width && first + r < c.small_channels ? in[first + r] : T(0);
            }
          }
        }
      }
    }
  }

  void pack_large(const T* image, int64_t row, int64_t rows) {
    const Correlation& c = plan_.c;
    T* phase_out = large_.get();
    for (int py = 0; py < c.stride; ++py) {
      for (int px = 0; px < c.stride; ++px, phase_out += plan_.large_pixels * vectors_ * kLanes<T>) {
        const int64_t height = rows + plan_.high - plan_.low;
        for (int64_t i = 0; i < height; ++i) {
          const int64_t y = c.stride * (row + i + plan_.low) + py;
          for (int64_t j = 0; j < plan_.width; ++j) {
            const int64_t x = c.stride * (j + plan_.low) + px;
            const bool inside = y >= 0 && y < c.large_height && x >= 0 && x < c.large_width;
            const T* in = inside ? image + (y * c.large_width + x) * c.large_channels : nullptr;
            pack_pixel(in, i * plan_.width + j, phase_out);
          }
        }
        for (int64_t p = height * plan_.width; p < height * plan_.width + plan_.high - plan_.low; ++p) {
          pack_pixel(nullptr, p, phase_out);
        }
      }
    }
  }

  void pack_pixel(const T* in, int64_t pixel, T* out) {
    for (int64_t i = large_begin_; i < large_end_; ++i) {
      const Panel& panel = plan_.large_panels[i];
      const int64_t width = panel.vectors * kLanes<T>;
      T* at = out + pixel * width;
      if (in == nullptr) {
        std::fill(at, at + width, T(0));
      } else {
        std::copy(in + panel.first, in + panel.first + panel.count, at);
        std::fill(at + panel.count, at + width, T(0));
      }
      out += plan_.large_pixels * width;
    }
  }

  void accumulate(int64_t rows) {
    const int64_t pixels = rows * plan_.width, blocks = (pixels + kPixels - 1) / kPixels;
    const int64_t small_stride = plan_.rows * plan_.width * kRows, panels = small_end_ - small_begin_;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t begin = pixels * block / blocks, count = pixels * (block + 1) / blocks - begin;
      T* out = result_.get();
      const T* panel_in = large_.get();
      for (int64_t i = large_begin_; i < large_end_; ++i) {
        const int vectors = plan_.large_panels[i].vectors;
        const int64_t width = vectors * kLanes<T>;
        for (const Tap& tap : plan_.taps) {
          const int64_t offset = (tap.row - plan_.low) * plan_.width + tap.column - plan_.low;
          const T* right = panel_in + tap.phase * plan_.large_pixels * vectors_ * kLanes<T> + (begin + offset) * width;
          for (int64_t s = 0; s < panels; ++s, out += kRows * width) {
            multiply_panels<T>(vectors, small_.get() + s * small_stride + begin * kRows, right, count, out);
          }
        }
        panel_in += plan_.large_pixels * width;
      }
    }
  }

  // weight [kernel, kernel, large channels] for each small channel: channels-last.
  void write(T* weight) {
    const Correlation& c = plan_.c;
    const int64_t taps = int64_t(plan_.taps.size());
    const T* in = result_.get();
    for (int64_t i = large_begin_; i < large_end_; ++i) {
      const Panel& panel = plan_.large_panels[i];
      const int64_t width = panel.vectors * kLanes<T>;
      for (int64_t tap = 0; tap < taps; ++tap) {
        for (int64_t s = small_begin_; s < small_end_; ++s) {
          for (int r = 0; r < kRows; ++r, in += width) {
            const int64_t m = s * kRows + r;
            if (m >= c.small_channels) continue;
            std::copy(in, in + panel.count, weight + (m * taps + tap) * c.large_channels + panel.first);
          }
        }
      }
    }
  }

  const Plan<T>& plan_;
  const int64_t small_begin_, small_end_, large_begin_, large_end_;
  int64_t vectors_ = 0;
  Buffer<T> small_, large_, result_;
};

}  // namespace

template <typename T>
void weight_gradient_cpu(const T* small, const T* large, const Correlation& correlation, T* weight) {
  const Plan<T> plan(correlation);
  const int64_t threads = std::max(1, at::get_num_threads()), panels = int64_t(plan.large_panels.size());
  const int64_t of_small = std::min(threads, plan.small_panels);
  const int64_t of_large = std::max<int64_t>(1, std::min(panels, threads / of_small));
  at::parallel_for(0, of_small * of_large, 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const int64_t i = index / of_large, j = index % of_large;
      Task<T>(plan, plan.small_panels * i / of_small, plan.small_panels * (i + 1) / of_small, panels * j / of_large,
              panels * (j + 1) / of_large)
          .run(small, large, weight);
    }
  });
}

template void weight_gradient_cpu<float>(const float*, const float*, const Correlation&, float*);
template void weight_gradient_cpu<double>(const double*, const double*, const Correlation&, double*);

}  // namespace next3d
