// Launchers of the CUDA kernels on raw device pointers; the same contracts as kernels_cpu.h, plus a stream.
// Half types are cuda_compat.h's Half and BFloat16; A is float, or double for double.
#pragma once

#include <cstdint>

#include "activation_math.h"
#include "cuda_compat.h"
#include "texture_math.h"
#include "layer_epilogue_math.h"
#include "upfirdn_math.h"

namespace next3d {

template <typename T>
void rasterize_cuda(Stream stream, const T* vertices, const int64_t* faces, int64_t samples, int64_t num_vertices,
                    int64_t num_faces, int height, int width, int64_t* face_ids, T* barycentrics, T* depth);

template <typename T>
void rasterize_backward_cuda(Stream stream, const T* grad_barycentrics, const T* grad_depth, const int64_t* face_ids,
                             const T* vertices, const int64_t* faces, int64_t samples, int64_t num_vertices,
                             int64_t num_faces, int height, int width, T* grad_vertices);

template <typename T>
void interpolate_cuda(Stream stream, const int64_t* face_ids, const T* barycentrics, const T* attributes,
                      int64_t samples, int64_t pixels, int64_t tables, int64_t num_faces, int64_t channels, T* out);

template <typename T>
void interpolate_backward_cuda(Stream stream, const T* grad, const int64_t* face_ids, const T* barycentrics,
                               const T* attributes, int64_t samples, int64_t pixels, int64_t tables,
                               int64_t num_faces, int64_t channels, T* grad_barycentrics, T* grad_attributes);

template <typename T>
void fill_holes_cuda(Stream stream, const T* alpha, int64_t samples, int height, int width, bool guarded,
                     uint8_t* state, T* out);

template <typename T>
void texture_planes_cuda(Stream stream, const ViewsToPlanes& shape, const int64_t* face_ids, const T* barycentrics,
                         const T* face_uv, const T* texture, T* out);

template <typename T>
void texture_planes_backward_cuda(Stream stream, const ViewsToPlanes& shape, const T* grad, const int64_t* face_ids,
                                  const T* barycentrics, const T* face_uv, const T* texture, T* grad_texture,
                                  T* grad_barycentrics);

template <typename T>
void sample_mask_cuda(Stream stream, const int64_t* face_ids, const T* barycentrics, const T* face_uv, const T* mask,
                      int64_t fragments, int64_t num_faces, int height, int width, T* out);

template <typename T, typename A>
void upfirdn2d_cuda(Stream stream, const T* x, const A* taps, bool correlate, double gain, int64_t planes,
                    int64_t inner, const Axis& rows, const Axis& columns, T* y);

template <typename T, typename A>
void layer_epilogue_cuda(Stream stream, const T* x, const A* taps, const A* scale, const A* noise, const A* bias,
                         const EpilogueSizes& sizes, const EpilogueParams<A>& params, T* y);

template <typename T, typename A>
void layer_epilogue_backward_cuda(Stream stream, const T* grad, const T* y, const A* scale, const A* noise,
                                  const A* bias, const EpilogueSizes& sizes, const EpilogueParams<A>& params,
                                  T* grad_filtered, A* grad_noise, A* strip_sums);

template <typename T, typename A>
void scale_channels_cuda(Stream stream, const T* x, const A* scale, const EpilogueSizes& sizes, T* y);

template <typename T, typename A>
void scale_channels_backward_cuda(Stream stream, const T* grad, const T* x, const A* scale, const EpilogueSizes& sizes,
                                  T* grad_x, A* strip_sums);

template <typename A>
void sum_strips_cuda(Stream stream, const A* strip_sums, int64_t samples, int64_t strips, int64_t width, A* sums);

template <typename T, typename A>
void bias_act_cuda(Stream stream, const T* x, const T* bias, int64_t outer, int64_t channels, int64_t inner, Act act,
                   const ActParams<A>& params, T* y);

template <typename T, typename A>
void bias_act_backward_cuda(Stream stream, const T* grad, const T* reference, const T* bias, int64_t outer,
                            int64_t channels, int64_t inner, Act act, const ActParams<A>& params, T* grad_x);

template <typename T, typename A>
void bias_act_backward_sum_cuda(Stream stream, const T* grad, const T* reference, const T* bias, int64_t outer,
                                int64_t channels, int64_t inner, Act act, const ActParams<A>& params, T* grad_x,
                                A* strip_sums);

}  // namespace next3d
