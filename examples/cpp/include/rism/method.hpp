// rism/method.hpp: from the outputs of a transformer graph to a mask, in C++17 and nothing else.
//
// docs/bundle.md, steps 6 and 7; equations of arXiv 2605.13122. For one expression there are
// L blocks, N = N_h x N_w image tokens (row-major) and D feature channels:
//
//     rism::VectorsCapture capture{attention, propagated, features, L, N, D};
//     rism::Localisation found = rism::segment_tokens(capture, {tau});
//     rism::Placement place = rism::Placement::stretch({width, height}, {N_w, N_h});
//     std::vector<std::uint8_t> mask = rism::mask(found.scores, place);  // height x width, 0 or 1
//
// Arrays are C-contiguous float32, as the engine gives them, and are only read. Nothing is
// thrown for what is in them: a map that tells no region apart gives scores of zero, an empty
// mask and a `Reason`. (std::bad_alloc is all that can be thrown.) Functions keep no state.
//
// Rounding. What decides on which side of a threshold a value falls is computed in float32 in
// the order of the NumPy runtime; sums over tokens and channels, whose order a BLAS chooses,
// are accumulated in double. Without contraction of a * b + c (-ffp-contract=off where the
// processor has such instructions) masks are those of the runtime, pixel for pixel.

#ifndef RISM_METHOD_HPP
#define RISM_METHOD_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace rism {

/// Why there is no answer.
enum class Reason {
    none,
    attention_not_finite,
    attention_constant,
    features_not_finite,
    no_input,  // a null pointer, or a size of zero
};

inline const char* describe(Reason reason) noexcept {
    switch (reason) {
        case Reason::none: return "";
        case Reason::attention_not_finite: return "the attention map is not finite";
        case Reason::attention_constant: return "the attention map is constant";
        case Reason::features_not_finite: return "the features are not finite";
        case Reason::no_input: return "there is nothing to segment";
    }
    return "";
}

/// Equation 6 uses the class means as they are; the paper's text normalises them (cosine).
enum class Prototype { equation, cosine };

struct Options {
    double tau = 0.8;  // manifest: method.tau
    Prototype prototype = Prototype::equation;  // manifest: method.prototype
};

/// What the method says about one expression, on the token grid.
struct Localisation {
    std::vector<float> scores;   // (N,) positive where the expression holds; zeros without an answer
    std::vector<float> coarse;   // (N,) in [0, 1], equation 3
    std::vector<float> refined;  // (N,) in [0, 1], equation 4
    double separability = 0.0;   // Fisher's score of the two classes; 0 where there is only one
    Reason reason = Reason::none;
};

/// Outputs of `transformer.vectors` for one expression.
struct VectorsCapture {
    const float* attention_vectors = nullptr;   // (L, N), a_l
    const float* propagated_vectors = nullptr;  // (L, N), T_l a_l
    const float* features = nullptr;            // (N, D)
    std::size_t blocks = 0, tokens = 0, channels = 0;  // L, N, D
};

/// Outputs of `transformer.matrices` for one expression.
struct MatricesCapture {
    const float* attention_vectors = nullptr;    // (L, N), a_l
    const float* transition_matrices = nullptr;  // (L, N, N), T_l
    const float* features = nullptr;             // (N, D)
    std::size_t blocks = 0, tokens = 0, channels = 0;
};

/// Outputs of `transformer.scores` for one expression.
struct ScoresCapture {
    const float* scores = nullptr;             // (N,)
    const float* coarse_attention = nullptr;   // (N,)
    const float* refined_attention = nullptr;  // (N,)
    float separability = 0.0F;
    std::size_t tokens = 0;
};

struct Size {
    std::size_t width = 0, height = 0;
};

/// Where the token grid lies on the user's picture. All but `grid` in pixels.
struct Placement {
    Size picture;  // the user's picture, and the mask
    Size resized;  // after the resize
    std::size_t left = 0, top = 0, right = 0, bottom = 0;  // what the model saw of `resized`
    Size grid;     // N_w, N_h

    /// The grid covers the whole picture: `remainder` is `stretch`, or there are fixed sizes.
    static Placement stretch(Size picture, Size grid) noexcept {
        return {picture, grid, 0, 0, grid.width, grid.height, grid};
    }
};

namespace detail {

// Below this span, of the largest magnitude, a float32 sum over blocks is rounding.
constexpr double constant_span = 1e-6;

inline bool all_finite(const std::vector<float>& values) noexcept {
    return std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
}

/// sum_l of (L, N), in float32 and block by block.
inline std::vector<float> sum_over_blocks(const float* vectors, std::size_t blocks,
                                          std::size_t tokens) {
    std::vector<float> sum(vectors, vectors + tokens);
    for (std::size_t l = 1; l < blocks; ++l) {
        for (std::size_t i = 0; i < tokens; ++i) sum[i] += vectors[l * tokens + i];
    }
    return sum;
}

/// 1 / |F| of one row; 0 for a zero vector.
inline float inverse_norm(const float* row, std::size_t channels) noexcept {
    double square = 0.0;
    for (std::size_t d = 0; d < channels; ++d) square += static_cast<double>(row[d]) * row[d];
    // Rounded where the runtime rounds: what overflows there overflows here.
    const float rounded = static_cast<float>(square);
    return rounded > 0.0F ? 1.0F / std::sqrt(rounded) : 0.0F;
}

/// Means of the L2-normalised features over a region and over the rest.
struct ClassMeans {
    std::vector<double> means[2];     // foreground, background: (D,)
    double mean_square[2] = {0.0, 0.0};  // 1, less the share of zero vectors
    std::size_t count[2] = {0, 0};
};

inline ClassMeans class_means(const float* features, const std::vector<float>& inverse,
                              const std::vector<std::uint8_t>& region, std::size_t channels) {
    ClassMeans result;
    for (auto& mean : result.means) mean.assign(channels, 0.0);
    for (std::size_t i = 0; i < region.size(); ++i) {
        const std::size_t c = region[i] != 0 ? 0 : 1;
        ++result.count[c];
        if (inverse[i] != 0.0F) result.mean_square[c] += 1.0;
        const float* row = features + i * channels;
        const double scale = inverse[i];  // 0 x inf stays NaN: such features are refused later
        for (std::size_t d = 0; d < channels; ++d) result.means[c][d] += scale * row[d];
    }
    for (std::size_t c = 0; c < 2; ++c) {
        const double count = result.count[c] > 0 ? static_cast<double>(result.count[c]) : 1.0;
        for (double& value : result.means[c]) value /= count;
        result.mean_square[c] /= count;
    }
    return result;
}

inline double fisher(const ClassMeans& classes) noexcept {
    double between = 0.0;
    double within = classes.mean_square[0] + classes.mean_square[1];
    for (std::size_t d = 0; d < classes.means[0].size(); ++d) {
        const double fg = classes.means[0][d];
        const double bg = classes.means[1][d];
        between += (fg - bg) * (fg - bg);
        within -= fg * fg + bg * bg;
    }
    return between / std::max(within, 1e-6);
}

inline void normalise(std::vector<double>& prototype) noexcept {
    double square = 0.0;
    for (const double value : prototype) square += value * value;
    const double length = square > 0.0 ? std::sqrt(square) : 1.0;
    for (double& value : prototype) value /= length;
}

/// For each of `size` pixels the cell at or before it, and the share of the next one.
struct Axis {
    std::vector<std::size_t> cell;
    std::vector<float> share;
};

inline Axis axis(std::size_t size, std::size_t resized, std::size_t start, std::size_t stop,
                 std::size_t cells) {
    Axis result{std::vector<std::size_t>(size), std::vector<float>(size)};
    const double scale = static_cast<double>(resized) / static_cast<double>(size);
    const double per_pixel = static_cast<double>(cells) / static_cast<double>(stop - start);
    const double last = static_cast<double>(cells) - 1.0;
    for (std::size_t x = 0; x < size; ++x) {
        const double centre =
            (static_cast<double>(x) + 0.5) * scale - static_cast<double>(start);
        const double at = std::min(std::max(centre * per_pixel - 0.5, 0.0), last);
        result.cell[x] = static_cast<std::size_t>(at);
        result.share[x] = static_cast<float>(at - static_cast<double>(result.cell[x]));
    }
    return result;
}

inline bool sound(const Placement& p) noexcept {
    return p.picture.width > 0 && p.picture.height > 0 && p.resized.width > 0 &&
           p.resized.height > 0 && p.left < p.right && p.right <= p.resized.width &&
           p.top < p.bottom && p.bottom <= p.resized.height && p.grid.width > 0 &&
           p.grid.height > 0;
}

/// Calls row(y, values) with each row of the upsampled map, from the top; false if unsound.
template <typename Row>
bool upsample_rows(const std::vector<float>& map, const Placement& place, Row&& row) {
    const std::size_t columns = place.grid.width;
    const std::size_t rows = place.grid.height;
    if (!sound(place) || map.size() / columns != rows || map.size() % columns != 0) return false;
    const std::size_t width = place.picture.width;
    const Axis across = axis(width, place.resized.width, place.left, place.right, columns);
    const Axis down = axis(place.picture.height, place.resized.height, place.top, place.bottom, rows);
    const auto widen = [&](std::size_t r, std::vector<float>& wide) {
        const float* from = map.data() + r * columns;
        for (std::size_t x = 0; x < width; ++x) {
            const std::size_t left = across.cell[x];
            const std::size_t right = std::min(left + 1, columns - 1);
            wide[x] = from[left] * (1.0F - across.share[x]) + from[right] * across.share[x];
        }
    };
    std::vector<float> upper(width), lower(width), values(width);
    std::size_t current = rows;  // the grid row in `upper`; none yet
    for (std::size_t y = 0; y < place.picture.height; ++y) {
        if (down.cell[y] != current) {
            current = down.cell[y];
            widen(current, upper);
            widen(std::min(current + 1, rows - 1), lower);
        }
        for (std::size_t x = 0; x < width; ++x) {
            values[x] = upper[x] + (lower[x] - upper[x]) * down.share[y];
        }
        row(y, static_cast<const std::vector<float>&>(values));
    }
    return true;
}

}  // namespace detail

/// Why a raw (N,) map tells no region apart; `Reason::none` if it does.
inline Reason degenerate(const std::vector<float>& values) noexcept {
    if (values.empty()) return Reason::no_input;
    if (!detail::all_finite(values)) return Reason::attention_not_finite;
    const auto ends = std::minmax_element(values.begin(), values.end());
    const double low = *ends.first;
    const double high = *ends.second;
    const double largest = std::max(std::abs(low), std::abs(high));
    return high - low <= detail::constant_span * largest ? Reason::attention_constant : Reason::none;
}

/// Scaled to [0, 1]; zeros where the values are constant or not finite.
inline std::vector<float> minmax(std::vector<float> values) {
    if (degenerate(values) != Reason::none) {
        std::fill(values.begin(), values.end(), 0.0F);
        return values;
    }
    const auto ends = std::minmax_element(values.begin(), values.end());
    const float low = *ends.first;
    const float span = *ends.second - low;
    for (float& value : values) value = (value - low) / span;
    return values;
}

/// T_l a_l of every block: (L, N, N) and (L, N) to (L, N).
inline std::vector<float> propagate(const float* transition_matrices, const float* attention_vectors,
                                    std::size_t blocks, std::size_t tokens) {
    std::vector<float> propagated(blocks * tokens);
    for (std::size_t row = 0; row < blocks * tokens; ++row) {
        const float* weights = transition_matrices + row * tokens;
        const float* attention = attention_vectors + row / tokens * tokens;
        double sum = 0.0;
        for (std::size_t j = 0; j < tokens; ++j) {
            sum += static_cast<double>(weights[j]) * attention[j];
        }
        propagated[row] = static_cast<float>(sum);
    }
    return propagated;
}

/// M = refined > tau, (N,) of 0 and 1.
inline std::vector<std::uint8_t> threshold(const std::vector<float>& refined, double tau) {
    std::vector<std::uint8_t> region(refined.size());
    for (std::size_t i = 0; i < refined.size(); ++i) {
        region[i] = refined[i] > static_cast<float>(tau) ? 1 : 0;
    }
    return region;
}

/// Class prototypes, equation 5: means of the L2-normalised features. A class without tokens is 0.
struct Prototypes {
    std::vector<double> foreground, background;  // (D,)
};

inline Prototypes prototypes(const float* features, const std::vector<std::uint8_t>& region,
                             std::size_t channels, Prototype rule = Prototype::equation) {
    std::vector<float> inverse(region.size());
    for (std::size_t i = 0; i < region.size(); ++i) {
        inverse[i] = detail::inverse_norm(features + i * channels, channels);
    }
    detail::ClassMeans classes = detail::class_means(features, inverse, region, channels);
    if (rule == Prototype::cosine) {
        for (auto& mean : classes.means) detail::normalise(mean);
    }
    return {classes.means[0], classes.means[1]};
}

/// Equation 6 before its argmax: F . (P_fg - P_bg) with F L2-normalised, (N, D) to (N,).
inline std::vector<float> classify(const float* features, const Prototypes& classes,
                                   std::size_t tokens) {
    const std::size_t channels = classes.foreground.size();
    std::vector<double> apart(channels);
    for (std::size_t d = 0; d < channels; ++d) {
        apart[d] = classes.foreground[d] - classes.background[d];
    }
    std::vector<float> scores(tokens);
    for (std::size_t i = 0; i < tokens; ++i) {
        const float* row = features + i * channels;
        double dot = 0.0;
        for (std::size_t d = 0; d < channels; ++d) dot += row[d] * apart[d];
        scores[i] = static_cast<float>(dot * detail::inverse_norm(row, channels));
    }
    return scores;
}

/// Fisher's score J = |mu_1 - mu_0|^2 / (sigma2_1 + sigma2_0) of two classes of tokens, on
/// L2-normalised features; 0 where one class has no tokens.
inline double separability(const float* features, const std::vector<std::uint8_t>& mask,
                           std::size_t channels) {
    std::vector<float> inverse(mask.size());
    for (std::size_t i = 0; i < mask.size(); ++i) {
        inverse[i] = detail::inverse_norm(features + i * channels, channels);
    }
    const detail::ClassMeans classes = detail::class_means(features, inverse, mask, channels);
    if (classes.count[0] == 0 || classes.count[1] == 0) return 0.0;
    return detail::fisher(classes);
}

/// The whole method for one expression, from what `transformer.vectors` returned.
inline Localisation segment_tokens(const VectorsCapture& capture, const Options& options = {}) {
    Localisation result;
    result.scores.assign(capture.tokens, 0.0F);
    if (capture.attention_vectors == nullptr || capture.propagated_vectors == nullptr ||
        capture.features == nullptr || capture.blocks == 0 || capture.tokens == 0 ||
        capture.channels == 0) {
        result.coarse = result.refined = result.scores;
        result.reason = Reason::no_input;
        return result;
    }
    result.coarse = minmax(
        detail::sum_over_blocks(capture.attention_vectors, capture.blocks, capture.tokens));
    std::vector<float> raw =
        detail::sum_over_blocks(capture.propagated_vectors, capture.blocks, capture.tokens);
    result.reason = degenerate(raw);
    result.refined = minmax(std::move(raw));
    if (result.reason != Reason::none) return result;

    const Prototypes classes = prototypes(capture.features, threshold(result.refined, options.tau),
                                          capture.channels, options.prototype);
    std::vector<float> scores = classify(capture.features, classes, capture.tokens);
    if (!detail::all_finite(scores)) {
        result.reason = Reason::features_not_finite;
        return result;
    }
    std::vector<std::uint8_t> predicted(scores.size());
    for (std::size_t i = 0; i < scores.size(); ++i) predicted[i] = scores[i] > 0.0F ? 1 : 0;
    result.separability = separability(capture.features, predicted, capture.channels);
    result.scores = std::move(scores);
    return result;
}

/// The same from what `transformer.matrices` returned.
inline Localisation segment_tokens(const MatricesCapture& capture, const Options& options = {}) {
    std::vector<float> propagated;
    VectorsCapture vectors{capture.attention_vectors, nullptr, capture.features,
                           capture.blocks,            capture.tokens, capture.channels};
    if (capture.transition_matrices != nullptr && capture.attention_vectors != nullptr) {
        propagated = propagate(capture.transition_matrices, capture.attention_vectors,
                               capture.blocks, capture.tokens);
        vectors.propagated_vectors = propagated.data();
    }
    return segment_tokens(vectors, options);
}

/// What `transformer.scores` returned, with its degenerate cases answered.
inline Localisation segment_tokens(const ScoresCapture& capture) {
    Localisation result;
    result.scores.assign(capture.tokens, 0.0F);
    if (capture.scores == nullptr || capture.coarse_attention == nullptr ||
        capture.refined_attention == nullptr || capture.tokens == 0) {
        result.coarse = result.refined = result.scores;
        result.reason = Reason::no_input;
        return result;
    }
    result.coarse.assign(capture.coarse_attention, capture.coarse_attention + capture.tokens);
    result.refined.assign(capture.refined_attention, capture.refined_attention + capture.tokens);
    result.reason = degenerate(result.refined);
    std::vector<float> scores(capture.scores, capture.scores + capture.tokens);
    if (result.reason == Reason::none && !detail::all_finite(scores)) {
        result.reason = Reason::features_not_finite;
    }
    if (result.reason != Reason::none) {
        for (auto* map : {&result.coarse, &result.refined}) {
            for (float& value : *map) value = std::isfinite(value) ? value : 0.0F;
        }
        return result;
    }
    result.scores = std::move(scores);
    result.separability = std::isfinite(capture.separability) ? capture.separability : 0.0;
    return result;
}

/// A map on the token grid, bilinearly at the picture's size: half-pixel centres, clamped edges.
///
/// Returns (height, width) float32, row-major; nothing where `place` and the map do not fit.
inline std::vector<float> upsample(const std::vector<float>& map, const Placement& place) {
    std::vector<float> full;
    detail::upsample_rows(map, place, [&](std::size_t y, const std::vector<float>& values) {
        if (y == 0) full.reserve(values.size() * place.picture.height);
        full.insert(full.end(), values.begin(), values.end());
    });
    return full;
}

/// The mask: `upsample(scores) > 0`, of which no more than two rows are ever kept.
///
/// Returns (height, width) of 0 and 1, row-major; nothing where `place` and the scores do not fit.
inline std::vector<std::uint8_t> mask(const std::vector<float>& scores, const Placement& place) {
    std::vector<std::uint8_t> result;
    detail::upsample_rows(scores, place, [&](std::size_t y, const std::vector<float>& values) {
        if (y == 0) result.reserve(values.size() * place.picture.height);
        for (const float value : values) result.push_back(value > 0.0F ? 1 : 0);
    });
    return result;
}

}  // namespace rism

#endif  // RISM_METHOD_HPP
