#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "rism/method.hpp"

namespace rism {

enum class Resample { lanczos, bicubic, bilinear, hamming, box };

/// docs/bundle.md, step 2. Sizes in pixels.
struct Geometry {
    std::size_t size_level = 0, multiple_px = 0, token_px = 0;
    bool resize_always = true;        // else `shrink`
    bool crop = false;                // else `stretch`
    bool round_up = false;            // format 1.2: `rounding` is `ceil`
    bool resize_in_float32 = false;   // format 1.2
    Resample resample = Resample::lanczos;
    double max_aspect = 0.0;
    std::array<double, 3> mean{}, std{};
    std::vector<Size> sizes;          // format 1.1; none: any size
};

/// Step 4.
struct Prompt {
    std::string template_text, prefix, suffix, tokenizer;
    std::size_t max_length = 0;
    std::int64_t pad_id = 0;
};

/// One tensor of a graph: its name in the file; sizes, or -1 where any is taken.
struct TensorSpec {
    std::string name, dtype;
    std::vector<std::int64_t> shape;
};

struct GraphSpec {
    std::string file;
    std::map<std::string, TensorSpec> inputs, outputs;  // by the page's names
};

/// One graph of an engine, ready to deserialise.
struct PlanSpec {
    std::string file, refit;  // `refit` only where the engine is stripped
    std::string weights;      // only where weights are inputs of the plan
};

/// A weight that a plan takes as an input: where in the bundle it lies, in bytes.
struct BoundWeight {
    std::string file, dtype;
    std::uint64_t offset = 0, length = 0;
    std::vector<std::int64_t> shape;
};

struct EngineVariant {
    std::string name, target, version, platform, precision;
    std::vector<std::string> compute_capabilities;
    bool stripped = false, streamed = false;
    std::map<std::string, PlanSpec> graphs;
};

struct FileEntry {
    std::string sha256;
    std::uint64_t size = 0;
};

/// A bundle folder whose manifest has been read and checked. Everything in it may be hostile.
///
/// Copying is not allowed: what has been hashed once is remembered here.
class Bundle {
public:
    /// Reads `manifest.json`. With `trust` files are not hashed; sizes are compared all the same.
    explicit Bundle(std::filesystem::path folder, bool trust = false);
    Bundle(const Bundle&) = delete;
    Bundle& operator=(const Bundle&) = delete;

    /// The place of a listed file: inside the folder, no link, of its listed size and hash.
    std::filesystem::path file(const std::string& name);

    /// The bytes of a listed file of at most `limit` bytes.
    std::vector<char> read(const std::string& name, std::uint64_t limit);

    /// Verifies every file that graphs may take their weights from.
    void verify_weights();

    /// The weights that a plan takes, by name of its input; `name` is `PlanSpec::weights`.
    std::map<std::string, BoundWeight> weights(const std::string& name);

    /// The bytes of one weight.
    std::vector<char> read(const BoundWeight& weight);

    /// The (N, C) float32 of the noise file: its first `rows` rows.
    std::vector<float> noise(std::size_t rows);

    const GraphSpec& graph(const std::string& name) const;

    Geometry geometry;
    Prompt prompt;
    Options method;
    std::string family, precision, default_capture;
    std::array<std::size_t, 2> noise_shape{};  // rows, channels
    std::map<std::string, GraphSpec> graphs;
    std::vector<EngineVariant> engines;

private:
    std::filesystem::path folder_;
    bool trust_;
    std::string noise_file_;
    std::map<std::string, FileEntry> files_;
    std::set<std::string> verified_;
};

}  // namespace rism
