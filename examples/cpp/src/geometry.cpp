#include "geometry.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "error.hpp"
#include "resample.hpp"

namespace rism {
namespace {

std::string text(Size size) {
    return std::to_string(size.width) + " x " + std::to_string(size.height);
}

std::size_t whole(double value) { return static_cast<std::size_t>(value); }

/// The size of the nearest aspect ratio; of equals the largest, then the first.
Size nearest(Size picture, const std::vector<Size>& sizes) {
    Size best;
    double least = 0.0;
    for (const Size& size : sizes) {
        const auto one = static_cast<double>(size.width * picture.height);
        const auto other = static_cast<double>(size.height * picture.width);
        const double far = std::max(one, other) / std::min(one, other);
        if (best.width == 0 || far < least ||
            (far == least && size.width * size.height > best.width * best.height)) {
            best = size;
            least = far;
        }
    }
    return best;
}

}  // namespace

Placement place(Size picture, const Geometry& geometry, std::size_t max_tokens) {
    const auto width = static_cast<double>(picture.width);
    const auto height = static_cast<double>(picture.height);
    if (const double aspect = std::max(width, height) / std::min(width, height);
        !(aspect <= geometry.max_aspect)) {
        throw Error("the picture is " + text(picture) + " pixels, expected sides of at most " +
                    std::to_string(geometry.max_aspect) + " to 1: crop it around the object first");
    }
    const auto level = static_cast<double>(geometry.size_level);
    const std::size_t m = geometry.multiple_px;
    Placement result;
    result.picture = picture;
    double wide = width, tall = height;
    if (!geometry.sizes.empty()) {
        result.resized = nearest(picture, geometry.sizes);
    } else {
        if (geometry.resize_always && geometry.round_up) {
            const double ratio = width / height;
            if (width > height) {
                wide = std::ceil(std::sqrt(level * level * ratio));
                tall = std::ceil(wide / ratio);
            } else {
                tall = std::ceil(std::sqrt(level * level / ratio));
                wide = std::ceil(tall * ratio);
            }
        } else if (geometry.resize_always) {
            const double root = std::sqrt(width * height);
            wide = width * level / root;
            tall = height * level / root;
        } else if (width * height > level * level) {
            const double scale = std::sqrt(level * level / (width * height));
            wide = width * scale;
            tall = height * scale;
        }
        result.resized = {whole(wide), whole(tall)};
        if (!geometry.crop) {
            result.resized = {std::max(m, result.resized.width / m * m),
                              std::max(m, result.resized.height / m * m)};
        }
    }
    const Size resized = result.resized;
    const Size seen = geometry.crop && geometry.sizes.empty()
                          ? Size{resized.width / m * m, resized.height / m * m}
                          : resized;
    result.left = (resized.width - seen.width) / 2;
    result.top = (resized.height - seen.height) / 2;
    result.right = result.left + seen.width;
    result.bottom = result.top + seen.height;
    result.grid = {seen.width / geometry.token_px, seen.height / geometry.token_px};
    if (result.grid.width == 0 || result.grid.height == 0) {
        throw Error("the picture of " + text(picture) + " pixels is too small for this model: "
                    "enlarge it first");
    }
    if (result.grid.width * result.grid.height > max_tokens) {
        throw Error("the picture of " + text(picture) + " pixels makes " + text(result.grid) +
                    " tokens, expected at most " + std::to_string(max_tokens) +
                    " (the bundle's noise): crop it nearer to a square");
    }
    return result;
}

std::vector<float> to_model(const Picture& picture, const Placement& place,
                            const Geometry& geometry) {
    std::vector<float> resized;
    if (geometry.resize_in_float32) {
        resized = resample(std::vector<float>(picture.rgb.begin(), picture.rgb.end()), picture.size,
                           place.resized, 3, geometry.resample);
    } else {
        const auto bytes =
            resample(picture.rgb, picture.size, place.resized, 3, geometry.resample);
        resized.assign(bytes.begin(), bytes.end());
    }
    const std::size_t height = place.bottom - place.top;
    const std::size_t width = place.right - place.left;
    std::vector<float> result(3 * height * width);
    std::size_t at = 0;
    for (std::size_t c = 0; c < 3; ++c) {
        const auto mean = static_cast<float>(geometry.mean[c]);
        const auto std = static_cast<float>(geometry.std[c]);
        for (std::size_t y = place.top; y < place.bottom; ++y) {
            for (std::size_t x = place.left; x < place.right; ++x) {
                const float value = resized[(y * place.resized.width + x) * 3 + c];
                result[at++] = (value / 255.0F - mean) / std;
            }
        }
    }
    return result;
}

std::vector<float> positions(Size grid) {
    std::vector<float> result;
    result.reserve(2 * grid.width * grid.height);
    for (std::size_t row = 0; row < grid.height; ++row) {
        for (std::size_t column = 0; column < grid.width; ++column) {
            result.push_back(static_cast<float>(row));
            result.push_back(static_cast<float>(column));
        }
    }
    return result;
}

}  // namespace rism
