// Kernels that read a texture through fragments, on raw pointers. See ViewsToPlanes for the shapes.
#pragma once

#include <cstdint>

#include "texture_math.h"

namespace next3d {

// face_uv [num_faces, 3, 2] is one table for all samples.
template <typename T>
void texture_planes_cpu(const ViewsToPlanes& shape, const int64_t* face_ids, const T* barycentrics, const T* face_uv,
                        const T* texture, T* out);

// Adds to grad_texture and writes grad_barycentrics, each unless null.
template <typename T>
void texture_planes_backward_cpu(const ViewsToPlanes& shape, const T* grad, const int64_t* face_ids,
                                 const T* barycentrics, const T* face_uv, const T* texture, T* grad_texture,
                                 T* grad_barycentrics);

// mask [height, width] at the uv of each fragment; 0 where there is no face.
template <typename T>
void sample_mask_cpu(const int64_t* face_ids, const T* barycentrics, const T* face_uv, const T* mask, int64_t fragments,
                     int64_t num_faces, int height, int width, T* out);

}  // namespace next3d
