#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine.hpp"
#include "geometry.hpp"
#include "tokenizer.hpp"

namespace rism {

struct Segmentation {
    Localisation found;
    Placement place;
    std::vector<std::uint8_t> mask;  // (height, width) of 0 and 1, at the picture's size
};

/// From a picture and an expression to a mask. Make one, use it many times, on one thread.
class Segmenter {
public:
    /// `capture` is `scores`, `vectors` or `matrices`; empty takes `scores` where the bundle has
    /// it and its default otherwise. Bundle and engine have to outlive this. Throws Error.
    Segmenter(Bundle& bundle, Engine& engine, const std::string& capture = "");

    Segmentation segment(const Picture& picture, const std::string& expression);

    /// The same with token ids of the whole prompt, from any tokenizer; without padding.
    Segmentation segment(const Picture& picture, const std::vector<std::int64_t>& ids);

    /// Token ids of the prompt about an expression, without padding.
    std::vector<std::int64_t> tokens(const std::string& expression);

    const std::string& capture() const { return capture_; }

private:
    Graph& graph(const std::string& name);
    Tensors run(const std::string& name, const Tensors& inputs);
    std::vector<float> embed(const std::vector<std::int64_t>& ids);
    Localisation localise(const Placement& place, const std::string& at_size,
                          std::vector<float> latents, std::vector<float> embeds);

    Bundle& bundle_;
    Engine& engine_;
    std::string capture_;
    std::unique_ptr<Tokenizer> tokenizer_;
    std::map<std::string, std::unique_ptr<Graph>> graphs_;
};

}  // namespace rism
