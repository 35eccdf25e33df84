#pragma once

#include <cstdint>
#include <vector>

#include "bundle.hpp"

namespace rism {

/// Pillow's resize: antialiased, the filter widened by the reduction; across first, or down
/// first where that takes away more than twice as many rows as columns (as from Pillow 13 on).
///
/// Both take (height, width, channels), row-major, and give that shape at the size `to`.
/// In 8 bits weights are fixed-point numbers and each pass is rounded, as Pillow does it, so
/// the result is Pillow's to the bit. In float32 nothing is rounded to 8 bits.
std::vector<std::uint8_t> resample(const std::vector<std::uint8_t>& pixels, Size from, Size to,
                                   std::size_t channels, Resample filter);
std::vector<float> resample(const std::vector<float>& pixels, Size from, Size to,
                            std::size_t channels, Resample filter);

}  // namespace rism
