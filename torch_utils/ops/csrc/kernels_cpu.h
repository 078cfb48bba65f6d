// CPU kernels on raw pointers; defined in *_cpu.cpp, checked and called by bindings_cpu.cpp.
#pragma once

#include <cstdint>

#include "activation_math.h"
#include "layer_epilogue_math.h"
#include "upfirdn_math.h"

namespace next3d {

// vertices [samples, num_vertices, 3]; faces [num_faces, 3]; outputs [samples, height, width(, 3)], all contiguous.
template <typename T>
void rasterize_cpu(const T* vertices, const int64_t* faces, int64_t samples, int64_t num_vertices, int64_t num_faces,
                   int height, int width, int64_t* face_ids, T* barycentrics, T* depth);

// Adds to grad_vertices [samples, num_vertices, 3].
template <typename T>
void rasterize_backward_cpu(const T* grad_barycentrics, const T* grad_depth, const int64_t* face_ids,
                            const T* vertices, const int64_t* faces, int64_t samples, int64_t num_vertices,
                            int64_t num_faces, int height, int width, T* grad_vertices);

// face_ids [samples, pixels]; barycentrics [samples, pixels, 3]; attributes [tables, num_faces, 3, channels] with
// tables = samples or 1; out [samples, pixels, channels], 0 where there is no face.
template <typename T>
void interpolate_cpu(const int64_t* face_ids, const T* barycentrics, const T* attributes, int64_t samples,
                     int64_t pixels, int64_t tables, int64_t num_faces, int64_t channels, T* out);

// Writes grad_barycentrics; adds to grad_attributes unless it is null.
template <typename T>
void interpolate_backward_cpu(const T* grad, const int64_t* face_ids, const T* barycentrics, const T* attributes,
                              int64_t samples, int64_t pixels, int64_t tables, int64_t num_faces, int64_t channels,
                              T* grad_barycentrics, T* grad_attributes);

// alpha, out, and `state` as scratch: [samples, height, width].
template <typename T>
void fill_holes_cpu(const T* alpha, int64_t samples, int height, int width, bool guarded, uint8_t* state, T* out);

// The type that sums are kept in.
template <typename T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

// x [planes, rows.in, columns.in, inner] -> y [planes, rows.out, columns.out, inner]; taps [rows.taps, columns.taps],
// mirrored first unless `correlate`.
template <typename T>
void upfirdn2d_cpu(const T* x, const typename Accumulator<T>::type* taps, bool correlate, double gain, int64_t planes,
                   int64_t inner, const Axis& rows, const Axis& columns, T* y);

// x [samples, channels, in_height, in_width] -> y [samples, channels, height, width]; taps [4] (mirrored: a convolution),
// scale [samples, channels] and noise [samples or 1, height, width] or null; bias [channels].
template <typename T>
void layer_epilogue_cpu(const T* x, const typename Accumulator<T>::type* taps,
                        const typename Accumulator<T>::type* scale, const typename Accumulator<T>::type* noise,
                        const typename Accumulator<T>::type* bias, const EpilogueSizes& sizes,
                        const EpilogueParams<typename Accumulator<T>::type>& params, T* y);

// grad_filtered and grad_noise [samples, height, width] may be null. strip_sums [samples, strips, 2, channels]: the
// sums over a strip's pixels of the gradient before the activation, alone and times the filtered and scaled input.
template <typename T>
void layer_epilogue_backward_cpu(const T* grad, const T* y, const typename Accumulator<T>::type* scale,
                                 const typename Accumulator<T>::type* noise,
                                 const typename Accumulator<T>::type* bias, const EpilogueSizes& sizes,
                                 const EpilogueParams<typename Accumulator<T>::type>& params, T* grad_filtered,
                                 typename Accumulator<T>::type* grad_noise,
                                 typename Accumulator<T>::type* strip_sums);

// x, y [samples, channels, height, width]; scale [samples, channels].
template <typename T>
void scale_channels_cpu(const T* x, const typename Accumulator<T>::type* scale, const EpilogueSizes& sizes, T* y);

// strip_sums [samples, strips, channels]: the sums of grad * x.
template <typename T>
void scale_channels_backward_cpu(const T* grad, const T* x, const typename Accumulator<T>::type* scale,
                                 const EpilogueSizes& sizes, T* grad_x,
                                 typename Accumulator<T>::type* strip_sums);

// strip_sums [samples, strips, width] -> sums [samples, width], added in order in double.
template <typename A>
void sum_strips_cpu(const A* strip_sums, int64_t samples, int64_t strips, int64_t width, A* sums);

// x, y, grad, reference [outer, channels, inner]; bias [channels] or null.
template <typename T>
void bias_act_cpu(const T* x, const T* bias, int64_t outer, int64_t channels, int64_t inner, Act act,
                  const ActParams<typename Accumulator<T>::type>& params, T* y);

// Swish takes its argument x and the bias; the others take the output as `reference` and a null bias.
template <typename T>
void bias_act_backward_cpu(const T* grad, const T* reference, const T* bias, int64_t outer, int64_t channels,
                           int64_t inner, Act act, const ActParams<typename Accumulator<T>::type>& params,
                           T* grad_x);

// Two channels-last images and the taps that tie them: pixel (i, j) of the small one meets
// (stride i + y - padding, stride j + x - padding) of the large one.
struct Correlation {
  int64_t samples, small_height, small_width, small_channels, large_height, large_width, large_channels;
  int kernel, stride, padding;
};

// weight [small_channels, kernel, kernel, large_channels]
template <typename T>
void weight_gradient_cpu(const T* small, const T* large, const Correlation& correlation, T* weight);

// Like bias_act_backward_cpu, and strip_sums [strip_count(outer * inner), channels], the sums of the gradient over strips of pixels.
template <typename T>
void bias_act_backward_sum_cpu(const T* grad, const T* reference, const T* bias, int64_t outer, int64_t channels,
                               int64_t inner, Act act, const ActParams<typename Accumulator<T>::type>& params,
                               T* grad_x, typename Accumulator<T>::type* strip_sums);

}  // namespace next3d
