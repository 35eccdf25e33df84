#include "resample.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace rism {
namespace {

constexpr double pi = 3.14159265358979323846;

double sinc(double x) { return x == 0.0 ? 1.0 : std::sin(x * pi) / (x * pi); }

double radius(Resample filter) {
    switch (filter) {
        case Resample::lanczos: return 3.0;
        case Resample::bicubic: return 2.0;
        case Resample::bilinear:
        case Resample::hamming: return 1.0;
        case Resample::box: return 0.5;
    }
    return 0.0;
}

double weight(Resample filter, double x) {
    if (filter == Resample::box) return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
    if (filter == Resample::lanczos) return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3.0) : 0.0;
    x = std::abs(x);
    if (filter == Resample::bilinear) return x < 1.0 ? 1.0 - x : 0.0;
    if (filter == Resample::hamming) {
        return x < 1.0 ? sinc(x) * (0.54 + 0.46 * std::cos(x * pi)) : 0.0;
    }
    constexpr double a = -0.5;  // Keys' cubic
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
    return 0.0;
}

/// The input samples that one output sample is made of.
struct Window {
    std::size_t first = 0;
    std::vector<double> weights;
};

std::vector<Window> windows(std::size_t from, std::size_t to, Resample filter) {
    const double scale = static_cast<double>(from) / static_cast<double>(to);
    const double widened = std::max(scale, 1.0);
    const double support = radius(filter) * widened;
    const double inverse = 1.0 / widened;
    std::vector<Window> result(to);
    for (std::size_t i = 0; i < to; ++i) {
        const double centre = (static_cast<double>(i) + 0.5) * scale;
        const auto low = static_cast<std::ptrdiff_t>(centre - support + 0.5);
        const auto high = static_cast<std::ptrdiff_t>(centre + support + 0.5);
        const auto first = static_cast<std::size_t>(std::max<std::ptrdiff_t>(low, 0));
        const auto end = std::min(static_cast<std::size_t>(high), from);
        Window& window = result[i];
        window.first = first;
        double sum = 0.0;
        for (std::size_t x = first; x < end; ++x) {
            const double w = weight(filter, (static_cast<double>(x) - centre + 0.5) * inverse);
            window.weights.push_back(w);
            sum += w;
        }
        if (sum != 0.0) {
            for (double& w : window.weights) w /= sum;
        }
    }
    return result;
}

// 8 bits of pixel, 2 for the overshoot of negative lobes, and the rest of 32 for the weight.
constexpr unsigned precision_bits = 32 - 8 - 2;

struct EightBits {
    using Pixel = std::uint8_t;
    using Weight = std::int32_t;
    using Sum = std::int32_t;
    static Weight weight(double w) {
        const double scaled = w * (1 << precision_bits);
        return static_cast<Weight>(w < 0.0 ? scaled - 0.5 : scaled + 0.5);
    }
    static Sum start() { return 1 << (precision_bits - 1); }
    static Pixel finish(Sum sum) {
        return static_cast<Pixel>(std::clamp(sum >> precision_bits, 0, 255));
    }
};

struct SinglePrecision {
    using Pixel = float;
    using Weight = double;
    using Sum = double;
    static Weight weight(double w) { return w; }
    static Sum start() { return 0.0; }
    static Pixel finish(Sum sum) { return static_cast<float>(sum); }
};

/// One pass along the middle axis of (outer, from, stride).
template <typename Kind>
std::vector<typename Kind::Pixel> pass(const std::vector<typename Kind::Pixel>& pixels,
                                       std::size_t outer, std::size_t from, std::size_t to,
                                       std::size_t stride, Resample filter) {
    std::vector<typename Kind::Pixel> result(outer * to * stride);
    std::vector<typename Kind::Weight> weights;
    const std::vector<Window> all = windows(from, to, filter);
    for (std::size_t i = 0; i < to; ++i) {
        weights.clear();
        for (const double w : all[i].weights) weights.push_back(Kind::weight(w));
        for (std::size_t o = 0; o < outer; ++o) {
            const auto* in = pixels.data() + (o * from + all[i].first) * stride;
            auto* out = result.data() + (o * to + i) * stride;
            for (std::size_t s = 0; s < stride; ++s) {
                typename Kind::Sum sum = Kind::start();
                for (std::size_t k = 0; k < weights.size(); ++k) {
                    sum += static_cast<typename Kind::Sum>(in[k * stride + s]) * weights[k];
                }
                out[s] = Kind::finish(sum);
            }
        }
    }
    return result;
}

template <typename Kind>
std::vector<typename Kind::Pixel> both(std::vector<typename Kind::Pixel> pixels, Size from, Size to,
                                       std::size_t channels, Resample filter) {
    // A side that does not change is not filtered: its weights would be 1 but for rounding.
    const auto across = [&](std::size_t rows) {
        if (from.width == to.width) return;
        pixels = pass<Kind>(pixels, rows, from.width, to.width, channels, filter);
    };
    const auto down = [&](std::size_t columns) {
        if (from.height == to.height) return;
        pixels = pass<Kind>(pixels, 1, from.height, to.height, columns * channels, filter);
    };
    // The order of Pillow 13; each pass rounds, so it shows.
    const auto loss = [](std::size_t before, std::size_t after) {
        return static_cast<std::ptrdiff_t>(before) - static_cast<std::ptrdiff_t>(after);
    };
    const std::ptrdiff_t rows = loss(from.height, to.height);
    if (rows > 0 && rows > 2 * loss(from.width, to.width)) {
        down(from.width);
        across(to.height);
    } else {
        across(from.height);
        down(to.width);
    }
    return pixels;
}

}  // namespace

std::vector<std::uint8_t> resample(const std::vector<std::uint8_t>& pixels, Size from, Size to,
                                   std::size_t channels, Resample filter) {
    return both<EightBits>(pixels, from, to, channels, filter);
}

std::vector<float> resample(const std::vector<float>& pixels, Size from, Size to,
                            std::size_t channels, Resample filter) {
    return both<SinglePrecision>(pixels, from, to, channels, filter);
}

}  // namespace rism
