// Marks functions that the CPU build and the CUDA build share.
#pragma once

#ifdef __CUDACC__
#define NEXT3D_HD __host__ __device__ __forceinline__
#else
#define NEXT3D_HD inline
#endif
