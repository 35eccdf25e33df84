#include "pipeline.hpp"

#include <algorithm>
#include <utility>

#include "error.hpp"

namespace rism {
namespace {

constexpr std::uint64_t tokenizer_limit = std::uint64_t{1} << 26U;
constexpr std::size_t text_limit = 16384;
constexpr std::int64_t batch_limit = 256;

std::string replaced(const std::string& text, const std::string& what, const std::string& by) {
    std::string result;
    std::size_t at = 0;
    for (std::size_t found; (found = text.find(what, at)) != std::string::npos;
         at = found + what.size()) {
        result += text.substr(at, found - at) + by;
    }
    return result + text.substr(at);
}

/// Rows of a batch that a graph was exported for; 1 where any number is taken.
std::int64_t batch_of(const GraphSpec& graph, const std::string& input) {
    const auto found = graph.inputs.find(input);
    if (found == graph.inputs.end() || found->second.shape.empty()) return 1;
    const std::int64_t batch = std::max<std::int64_t>(found->second.shape[0], 1);
    if (batch > batch_limit) throw Error("'" + input + "' has a batch of " + std::to_string(batch));
    return batch;
}

/// One row, as often as a fixed batch wants it.
template <typename T>
Tensor batched(std::vector<T> row, std::vector<std::int64_t> shape, std::int64_t batch) {
    const std::size_t size = row.size();
    row.reserve(size * static_cast<std::size_t>(batch));
    for (std::int64_t b = 1; b < batch; ++b) {
        for (std::size_t i = 0; i < size; ++i) row.push_back(row[i]);
    }
    shape.insert(shape.begin(), batch);
    return {std::move(shape), std::move(row)};
}

std::int64_t signed_size(std::size_t size) { return static_cast<std::int64_t>(size); }

/// The first row of an output whose shape, after the batch, has to be `shape` (-1: any size).
const float* first_row(const Tensors& outputs, const std::string& name,
                       const std::vector<std::int64_t>& shape) {
    const auto found = outputs.find(name);
    if (found == outputs.end()) throw Error("the graph gave no '" + name + "': export it again");
    const Tensor& tensor = found->second;
    bool fits = !tensor.is_int64() && tensor.shape.size() == shape.size() + 1 && tensor.shape[0] > 0;
    for (std::size_t i = 0; fits && i < shape.size(); ++i) {
        fits = shape[i] == -1 ? tensor.shape[i + 1] > 0 : tensor.shape[i + 1] == shape[i];
    }
    std::size_t elements = 1;
    for (const std::int64_t side : tensor.shape) elements *= static_cast<std::size_t>(side);
    if (!fits || elements != tensor.size()) {
        throw Error("the graph gave '" + name + "' of a shape that the bundle's geometry does not "
                    "allow: export the bundle again");
    }
    return tensor.floats().data();
}

std::string choose_capture(const Bundle& bundle, const std::string& wanted) {
    // Those of all sizes are the same.
    const std::string size =
        bundle.geometry.sizes.empty()
            ? ""
            : "@" + std::to_string(bundle.geometry.sizes[0].width) + "x" +
                  std::to_string(bundle.geometry.sizes[0].height);
    if (!wanted.empty()) {
        bundle.graph("transformer." + wanted + size);
        return wanted;
    }
    if (bundle.graphs.count("transformer.scores" + size) > 0) return "scores";
    bundle.graph("transformer." + bundle.default_capture + size);
    return bundle.default_capture;
}

}  // namespace

Segmenter::Segmenter(Bundle& bundle, Engine& engine, const std::string& capture)
    : bundle_(bundle), engine_(engine), capture_(choose_capture(bundle, capture)) {
    if (capture_ != "scores" && capture_ != "vectors" && capture_ != "matrices") {
        throw Error("the capture mode is '" + capture_ + "', expected scores, vectors or matrices");
    }
}

Graph& Segmenter::graph(const std::string& name) {
    auto& loaded = graphs_[name];
    if (!loaded) loaded = engine_.load(name);
    return *loaded;
}

std::vector<std::int64_t> Segmenter::tokens(const std::string& expression) {
    if (expression.find_first_not_of(" \t\r\n") == std::string::npos) {
        throw Error("the expression is empty, expected such as 'the green van'");
    }
    const Prompt& prompt = bundle_.prompt;
    if (!tokenizer_) {
        tokenizer_ = std::make_unique<Tokenizer>(bundle_.read(prompt.tokenizer, tokenizer_limit));
    }
    // Written out in an expression it would end the instruction, or begin another.
    if (const std::string token = tokenizer_->special_token_in(expression); !token.empty()) {
        throw Error("the expression contains the special token '" + token + "', expected words");
    }
    const std::string text =
        prompt.prefix + replaced(prompt.template_text, "{expression}", expression) + prompt.suffix;
    if (text.size() > text_limit) throw Error("the expression is too long for any prompt");
    return tokenizer_->encode(text);
}

Segmentation Segmenter::segment(const Picture& picture, const std::string& expression) {
    return segment(picture, tokens(expression));
}

Segmentation Segmenter::segment(const Picture& picture, const std::vector<std::int64_t>& ids) {
    const Geometry& geometry = bundle_.geometry;
    Segmentation result;
    result.place = place(picture.size, geometry, bundle_.noise_shape[0]);
    const Size resized = result.place.resized;
    const std::string at_size =
        geometry.sizes.empty()
            ? ""
            : "@" + std::to_string(resized.width) + "x" + std::to_string(resized.height);

    std::vector<float> embeds = embed(ids);

    const Size grid = result.place.grid;
    const std::int64_t tokens = signed_size(grid.width * grid.height);
    const Tensors inputs{{"image", {{1, 3, signed_size(result.place.bottom - result.place.top),
                                     signed_size(result.place.right - result.place.left)},
                                    to_model(picture, result.place, geometry)}}};
    const Tensors outputs = graph("vae_encoder" + at_size).run(inputs);
    const std::int64_t channels = signed_size(bundle_.noise_shape[1]);
    const float* latents = first_row(outputs, "clean_latents", {tokens, channels});

    result.found = localise(result.place, at_size,
                            std::vector<float>(latents, latents + tokens * channels),
                            std::move(embeds));
    result.mask = mask(result.found.scores, result.place);
    return result;
}

std::vector<float> Segmenter::embed(const std::vector<std::int64_t>& ids) {
    const std::size_t length = bundle_.prompt.max_length;
    if (ids.empty() || ids.size() > length) {
        throw Error("the prompt has " + std::to_string(ids.size()) + " tokens, expected 1 to " +
                    std::to_string(length) + ": shorten the expression");
    }
    std::vector<std::int64_t> padded(ids), attention(ids.size(), 1);
    padded.resize(length, bundle_.prompt.pad_id);
    attention.resize(length, 0);
    const GraphSpec& spec = bundle_.graph("text_encoder");
    const std::int64_t batch = batch_of(spec, "input_ids"), n_p = signed_size(length);
    Tensors inputs;
    inputs.emplace("input_ids", batched(std::move(padded), {n_p}, batch));
    inputs.emplace("attention_mask", batched(std::move(attention), {n_p}, batch));
    const Tensors outputs = graph("text_encoder").run(inputs);
    const float* row = first_row(outputs, "prompt_embeds", {n_p, -1});
    return {row, row + n_p * outputs.at("prompt_embeds").shape[2]};
}

Localisation Segmenter::localise(const Placement& place, const std::string& at_size,
                                 std::vector<float> latents, std::vector<float> embeds) {
    const std::string name = "transformer." + capture_ + at_size;
    const GraphSpec& spec = bundle_.graph(name);
    const std::int64_t batch = batch_of(spec, "clean_latents");
    const std::size_t n_v = place.grid.width * place.grid.height, n_p = bundle_.prompt.max_length;
    const std::int64_t tokens = signed_size(n_v), words = signed_size(n_p);
    const std::int64_t channels = signed_size(bundle_.noise_shape[1]);
    const std::int64_t width = signed_size(embeds.size() / n_p);
    Tensors inputs;
    inputs.emplace("clean_latents", batched(std::move(latents), {tokens, channels}, batch));
    inputs.emplace("noise", Tensor{{1, tokens, channels}, bundle_.noise(n_v)});
    inputs.emplace("prompt_embeds", batched(std::move(embeds), {words, width}, batch));
    inputs.emplace("prompt_weights", batched(std::vector<float>(n_p, 1.0F), {words}, batch));
    inputs.emplace("positions", Tensor{{tokens, 2}, positions(place.grid)});
    if (capture_ == "scores") {
        inputs.emplace("tau",
                       Tensor{{1}, std::vector<float>{static_cast<float>(bundle_.method.tau)}});
    }
    const Tensors outputs = graph(name).run(inputs);

    if (capture_ == "scores") {
        return segment_tokens(ScoresCapture{first_row(outputs, "scores", {tokens}),
                                            first_row(outputs, "coarse_attention", {tokens}),
                                            first_row(outputs, "refined_attention", {tokens}),
                                            first_row(outputs, "separability", {})[0], n_v});
    }
    const float* attention = first_row(outputs, "attention_vectors", {-1, tokens});
    const float* features = first_row(outputs, "features", {tokens, -1});
    const std::int64_t l = outputs.at("attention_vectors").shape[1];
    const auto blocks = static_cast<std::size_t>(l);
    const auto depth = static_cast<std::size_t>(outputs.at("features").shape[2]);
    if (capture_ == "matrices") {
        const float* matrices = first_row(outputs, "transition_matrices", {l, tokens, tokens});
        return segment_tokens(MatricesCapture{attention, matrices, features, blocks, n_v, depth},
                              bundle_.method);
    }
    const float* propagated = first_row(outputs, "propagated_vectors", {l, tokens});
    return segment_tokens(VectorsCapture{attention, propagated, features, blocks, n_v, depth},
                          bundle_.method);
}

}  // namespace rism
