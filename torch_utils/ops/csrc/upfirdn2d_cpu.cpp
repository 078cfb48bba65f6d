// FIR resampling row by row: the rows that an output row needs are combined first, then filtered along the row by
// polyphase components, so that every inner loop is contiguous. A filter that is an outer product costs one
// horizontal pass per output row, any other filter one per tap row.
#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <type_traits>
#include <vector>

#include "half_bits.h"
#include "kernels_cpu.h"

namespace next3d {
namespace {

// filter = rows (outer product) columns, when it is one to rounding.
template <typename A>
struct Separated {
  bool exact = false;
  std::vector<A> rows, columns;
};

template <typename A>
Separated<A> separate(const A* filter, int height, int width) {
  Separated<A> result;
  int pivot = -1;  // the smallest entry that is not zero: dividing by it keeps binomial filters exact
  for (int i = 0; i < height * width; ++i) {
    if (filter[i] != A(0) && (pivot < 0 || std::abs(filter[i]) < std::abs(filter[pivot]))) pivot = i;
  }
  if (pivot < 0) return result;
  const int row = pivot / width, column = pivot % width;
  for (int i = 0; i < height; ++i) result.rows.push_back(filter[i * width + column] / filter[pivot]);
  for (int j = 0; j < width; ++j) result.columns.push_back(filter[row * width + j]);
  const A tolerance = 4 * std::numeric_limits<A>::epsilon();
  for (int i = 0; i < height * width; ++i) {
    const A product = result.rows[i / width] * result.columns[i % width];
    if (!(std::abs(product - filter[i]) <= tolerance * std::abs(filter[i]))) return result;
  }
  result.exact = true;
  return result;
}

// out[i] (+)= sum_j weights[j] * in[j][i]
template <typename A>
void weighted_sum(const A* const* in, const A* weights, int terms, int64_t length, bool accumulate, A* out) {
  int j = 0;
  if (!accumulate) {
    if (terms == 0) {
      std::fill(out, out + length, A(0));
    } else if (terms == 1) {
      for (int64_t i = 0; i < length; ++i) out[i] = weights[0] * in[0][i];
      j = 1;
    } else {
      const A *a = in[0], *b = in[1];
      for (int64_t i = 0; i < length; ++i) out[i] = weights[0] * a[i] + weights[1] * b[i];
      j = 2;
    }
  }
  for (; j + 1 < terms; j += 2) {
    const A *a = in[j], *b = in[j + 1];
    for (int64_t i = 0; i < length; ++i) out[i] += weights[j] * a[i] + weights[j + 1] * b[i];
  }
  if (j < terms) {
    for (int64_t i = 0; i < length; ++i) out[i] += weights[j] * in[j][i];
  }
}

// Filters one row; owns the scratch rows of one thread.
template <typename T, typename A>
class RowFilter {
 public:
  RowFilter(const Axis& axis, int64_t inner) : axis_(axis), inner_(inner) {
    const int common = std::gcd(axis.up, axis.down);
    phases_ = axis.up / common;
    step_ = inner == 1 ? axis.down / common : 1;
    int tap, last;
    first_tap(axis, 0, &tap, &low_);
    first_tap(axis, axis.out - 1, &tap, &last);
    length_ = last + axis.taps - low_ + 1;  // a few more than needed
    lane_ = (length_ + step_ - 1) / step_ + 1;
    row_.assign(int64_t(length_) * inner, A(0));
    if (step_ > 1) lanes_.assign(int64_t(lane_) * step_, A(0));
    sum_.assign(inner == 1 ? int64_t(axis.out) + phases_ : inner, A(0));
    begin_ = std::max(low_, 0);
    end_ = std::min(low_ + length_, axis.in);
  }

  bool reads_input() const { return begin_ < end_; }

  // row = weight * x, or row += weight * x; x points at the row's first sample.
  void load(const T* x, A weight, bool accumulate) {
    const T* source = x + begin_ * inner_;
    A* target = row_.data() + (begin_ - low_) * inner_;
    const int64_t count = int64_t(end_ - begin_) * inner_;
    if (accumulate) {
      for (int64_t i = 0; i < count; ++i) target[i] += weight * widened(source[i]);
    } else {
      for (int64_t i = 0; i < count; ++i) target[i] = weight * widened(source[i]);
    }
  }

  // out (+)= the loaded row filtered by `taps`; out [axis.out, inner].
  void filter(const A* taps, bool accumulate, A* out) {
    if (inner_ == 1) {
      filter_planar(taps, accumulate, out);
    } else {
      filter_interleaved(taps, accumulate, out);
    }
  }

 private:
  void filter_planar(const A* taps, bool accumulate, A* out) {
    if (step_ > 1) {
      for (int s = 0; s < step_; ++s) {
        A* lane = lanes_.data() + int64_t(s) * lane_;
        const A* in = row_.data() + s;
        const int count = (length_ - s + step_ - 1) / step_;
        if (step_ == 2) {  // a constant distance: vectorized
          for (int q = 0; q < count; ++q) lane[q] = in[2 * q];
        } else {
          for (int q = 0; q < count; ++q) lane[q] = in[q * step_];
        }
      }
    }
    if (phases_ == 2 && !accumulate && axis_.out % 2 == 0) return filter_both_phases(taps, out);
    for (int phase = 0; phase < phases_ && phase < axis_.out; ++phase) {
      const int terms = gather(taps, phase);
      const int64_t count = (axis_.out - phase + phases_ - 1) / phases_;
      if (phases_ == 1) {
        weighted_sum(in_.data(), weights_.data(), terms, count, accumulate, out);
        continue;
      }
      weighted_sum(in_.data(), weights_.data(), terms, count, false, sum_.data());
      if (accumulate) {
        for (int64_t q = 0; q < count; ++q) out[q * phases_ + phase] += sum_[q];
      } else {
        for (int64_t q = 0; q < count; ++q) out[q * phases_ + phase] = sum_[q];
      }
    }
  }

  // Upsampling by two: both phases are written together, so that the stores are contiguous.
  void filter_both_phases(const A* taps, A* out) {
    const int64_t count = axis_.out / 2;
    int terms = gather(taps, 0);
    weighted_sum(in_.data(), weights_.data(), terms, count, false, sum_.data());
    second_.resize(count);
    terms = gather(taps, 1);
    weighted_sum(in_.data(), weights_.data(), terms, count, false, second_.data());
    const A *even = sum_.data(), *odd = second_.data();
    for (int64_t q = 0; q < count; ++q) {
      out[2 * q] = even[q];
      out[2 * q + 1] = odd[q];
    }
  }

  void filter_interleaved(const A* taps, bool accumulate, A* out) {
    for (int o = 0; o < axis_.out; ++o) {
      const int terms = gather(taps, o);
      weighted_sum(in_.data(), weights_.data(), terms, inner_, accumulate, out + o * inner_);
    }
  }

  // Collects the taps and the sample pointers of output `o`; returns their number.
  int gather(const A* taps, int o) {
    int tap, input;
    first_tap(axis_, o, &tap, &input);
    in_.clear();
    weights_.clear();
    for (; tap < axis_.taps; tap += axis_.up, ++input) {
      const int at = input - low_;
      in_.push_back(step_ == 1 ? row_.data() + int64_t(at) * inner_
                               : lanes_.data() + int64_t(at % step_) * lane_ + at / step_);
      weights_.push_back(taps[tap]);
    }
    return static_cast<int>(in_.size());
  }

  Axis axis_;
  int64_t inner_;
  int phases_, step_;         // outputs per pattern of taps, inputs that the pattern advances by
  int low_, length_, lane_;   // first sample and number of samples of the scratch row
  int begin_, end_;           // those that exist
  std::vector<A> row_, lanes_, sum_, second_;
  std::vector<const A*> in_;
  std::vector<A> weights_;
};

}  // namespace

template <typename T>
void upfirdn2d_cpu(const T* x, const typename Accumulator<T>::type* taps, bool correlate, double gain, int64_t planes,
                   int64_t inner, const Axis& rows, const Axis& columns, T* y) {
  using A = typename Accumulator<T>::type;
  if (planes == 0 || inner == 0) return;
  std::vector<A> filter(taps, taps + int64_t(rows.taps) * columns.taps);
  if (!correlate) std::reverse(filter.begin(), filter.end());
  for (A& weight : filter) weight *= A(gain);
  const Separated<A> separated = separate(filter.data(), rows.taps, columns.taps);
  const int64_t in_row = columns.in * inner, out_row = columns.out * inner;
  const int64_t grain = std::max<int64_t>(1, 32768 / out_row);
  at::parallel_for(0, planes * rows.out, grain, [&](int64_t begin, int64_t end) {
    RowFilter<T, A> work(columns, inner);
    std::vector<A> sum(std::is_same_v<T, A> ? 0 : out_row);
    for (int64_t index = begin; index < end; ++index) {
      const T* plane = x + index / rows.out * rows.in * in_row;
      T* out = y + index * out_row;
      A* result = sum.data();
      if constexpr (std::is_same_v<T, A>) result = out;
      int tap, input;
      first_tap(rows, static_cast<int>(index % rows.out), &tap, &input);
      bool any = false;
      for (; tap < rows.taps; tap += rows.up, ++input) {
        if (input < 0 || input >= rows.in || !work.reads_input()) continue;
        if (separated.exact) {
          work.load(plane + input * in_row, separated.rows[tap], any);
        } else {
          work.load(plane + input * in_row, A(1), false);
          work.filter(filter.data() + int64_t(tap) * columns.taps, any, result);
        }
        any = true;
      }
      if (!any) {
        std::fill(result, result + out_row, A(0));
      } else if (separated.exact) {
        work.filter(separated.columns.data(), false, result);
      }
      if constexpr (!std::is_same_v<T, A>) {
        for (int64_t i = 0; i < out_row; ++i) out[i] = narrowed<T>(sum[i]);
      }
    }
  });
}

#define NEXT3D_INSTANTIATE(T)                                                                                     \
  template void upfirdn2d_cpu<T>(const T*, const Accumulator<T>::type*, bool, double, int64_t, int64_t, const Axis&, \
                                 const Axis&, T*);
NEXT3D_INSTANTIATE(float)
NEXT3D_INSTANTIATE(double)
NEXT3D_INSTANTIATE(c10::Half)
NEXT3D_INSTANTIATE(c10::BFloat16)
#undef NEXT3D_INSTANTIATE

}  // namespace next3d
