#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "geometry.hpp"

namespace rism {

/// A PNG or JPEG file as 8-bit RGB: EXIF orientation applied, transparency over white.
///
/// Throws Error for anything else, for 16 bits a channel, CMYK, and for more than 64 megapixels.
Picture read_picture(const std::filesystem::path& file);

/// Writes a mask of 0 and 1 as a greyscale PNG of 0 and 255; whole or not at all.
void write_mask(const std::filesystem::path& file, const std::vector<std::uint8_t>& mask,
                Size size);

}  // namespace rism
