// Sums over pixels are taken over strips of fixed size first, so that they depend on nothing but the data.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace next3d {

constexpr int64_t kStripPixels = 512;

NEXT3D_HD int64_t strip_count(int64_t pixels) { return (pixels + kStripPixels - 1) / kStripPixels; }

}  // namespace next3d
