#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "bundle.hpp"

namespace rism {

/// (height, width, 3) of 8 bits, row-major.
struct Picture {
    Size size;
    std::vector<std::uint8_t> rgb;
};

/// Where a picture of this size goes (docs/bundle.md, step 2).
///
/// Throws Error where it is longer than `max_aspect`, too small for one token, or makes more
/// tokens than `max_tokens`.
Placement place(Size picture, const Geometry& geometry, std::size_t max_tokens);

/// Resize, crop and normalise: (1, 3, h, w) float32.
std::vector<float> to_model(const Picture& picture, const Placement& place,
                            const Geometry& geometry);

/// Row and column of each token: (N_v, 2) float32.
std::vector<float> positions(Size grid);

}  // namespace rism
