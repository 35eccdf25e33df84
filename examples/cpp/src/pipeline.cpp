#include "pipeline.hpp"

#include <algorithm>
#include <utility>

#include "error.hpp"

namespace rism {
namespace {

constexpr std::uint64_t tokenizer_limit = std::uint64_t{1} << 26U;
constexpr std::size_t expression_limit = 4096;
constexpr std::int64_t batch_limit = 256;

/// Length of a character at an end of a text that nobody sees: white space, a byte order mark, a
/// zero-width space or a mark of direction in UTF-8; 0 for any other.
std::size_t unseen(const std::string& text, bool at_end) {
    if (text.empty()) return 0;
    const char outer = at_end ? text.back() : text.front();
    if (outer == ' ' || (outer >= '\t' && outer <= '\r')) return 1;
    if (text.size() < 3) return 0;
    const std::string three = at_end ? text.substr(text.size() - 3) : text.substr(0, 3);
    const bool found = three == "\xef\xbb\xbf" ||
                       (three >= "\xe2\x80\x8b" && three <= "\xe2\x80\x8f") ||
                       (three >= "\xe2\x80\xaa" && three <= "\xe2\x80\xae") ||
                       (three >= "\xe2\x81\xa0" && three <= "\xe2\x81\xaf");
    return found ? 3 : 0;
}

/// The expression with its white space collapsed, and without what nobody sees at its ends. Throws
/// Error where it is unusable.
std::string cleaned(std::string expression) {
    if (expression.size() > expression_limit) {
        throw Error("the expression has " + std::to_string(expression.size()) +
                    " characters, expected at most " + std::to_string(expression_limit));
    }
    while (const std::size_t length = unseen(expression, false)) expression.erase(0, length);
    while (const std::size_t length = unseen(expression, true)) {
        expression.erase(expression.size() - length);
    }
    std::string words;
    bool gap = false;
    for (const char c : expression) {
        if (c == ' ' || (c >= '\t' && c <= '\r')) {
            gap = true;
            continue;
        }
        if (static_cast<unsigned char>(c) < ' ' || c == 127) {
            throw Error("the expression contains a control character: take it out");
        }
        if (gap && !words.empty()) words += ' ';
        gap = false;
        words += c;
    }
    if (words.empty()) throw Error("the expression is empty, expected such as 'the green van'");
    return words;
}

/// That a graph is fed what it takes: every input, of its type and shape.
void check_feeds(const GraphSpec& graph, const Tensors& inputs) {
    for (const auto& [name, spec] : graph.inputs) {
        const auto found = inputs.find(name);
        if (found == inputs.end()) {
            throw Error("'" + graph.file + "' takes '" + name +
                        "', which this reader does not know: use `rism run`");
        }
        const Tensor& tensor = found->second;
        bool fits = spec.shape.size() == tensor.shape.size();
        for (std::size_t i = 0; fits && i < spec.shape.size(); ++i) {
            fits = spec.shape[i] == -1 || spec.shape[i] == tensor.shape[i];
        }
        if (!fits || spec.dtype != (tensor.is_int64() ? "int64" : "float32")) {
            throw Error("'" + graph.file + "' takes '" + name +
                        "' of another shape or type than docs/bundle.md says: use `rism run`");
        }
    }
}

std::string replaced(const std::string& text, const std::string& what, const std::string& by) {
    std::string result;
    std::size_t at = 0;
    for (std::size_t found; (found = text.find(what, at)) != std::string::npos;
         at = found + what.size()) {
        result += text.substr(at, found - at) + by;
    }
    return result + text.substr(at);
}

/// Rows that a run has to have: 1 where any number is taken.
std::int64_t batch_of(const GraphSpec& spec, const Graph& graph, const std::string& input) {
    std::int64_t batch = graph.smallest_batch(input);
    const auto found = spec.inputs.find(input);
    if (found != spec.inputs.end() && !found->second.shape.empty()) {
        batch = std::max(batch, found->second.shape[0]);
    }
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

/// How the names of graphs of a fixed size end.
std::string size_name(Size size) {
    return "@" + std::to_string(size.width) + "x" + std::to_string(size.height);
}

std::string choose_capture(const Bundle& bundle, const Engine& engine, const std::string& wanted) {
    // Those of all sizes are the same.
    const auto& sizes = bundle.geometry.sizes;
    const std::string at_size = sizes.empty() ? "" : size_name(sizes[0]);
    if (!wanted.empty() && wanted != "scores" && wanted != "vectors" && wanted != "matrices") {
        throw Error("the capture mode is '" + wanted + "', expected scores, vectors or matrices");
    }
    const auto has = [&](const std::string& capture) {
        return engine.has("transformer." + capture + at_size);
    };
    // With `scores` the least is copied and nothing is left to compute.
    for (const std::string& capture :
         {std::string("scores"), bundle.default_capture, std::string("vectors"),
          std::string("matrices")}) {
        if (wanted.empty() ? has(capture) : capture == wanted && has(capture)) return capture;
    }
    throw Error("there is no graph 'transformer." + (wanted.empty() ? "scores" : wanted) + at_size +
                "': export the bundle with it");
}

}  // namespace

Segmenter::Segmenter(Bundle& bundle, Engine& engine, const std::string& capture)
    : bundle_(bundle), engine_(engine), capture_(choose_capture(bundle, engine, capture)) {}

Graph& Segmenter::graph(const std::string& name) {
    auto& loaded = graphs_[name];
    if (!loaded) loaded = engine_.load(name);
    return *loaded;
}

Tensors Segmenter::run(const std::string& name, const Tensors& inputs) {
    check_feeds(bundle_.graph(name), inputs);
    return graph(name).run(inputs);
}

std::vector<std::int64_t> Segmenter::tokens(const std::string& expression) {
    const std::string words = cleaned(expression);
    const Prompt& prompt = bundle_.prompt;
    if (!tokenizer_) {
        tokenizer_ = std::make_unique<Tokenizer>(bundle_.read(prompt.tokenizer, tokenizer_limit));
    }
    // Written out in an expression it would end the instruction, or begin another.
    if (const std::string token = tokenizer_->control_token_in(words); !token.empty()) {
        throw Error("the expression contains the control token '" + token + "', expected words");
    }
    return tokenizer_->encode(
        prompt.prefix + replaced(prompt.template_text, "{expression}", words) + prompt.suffix);
}

Segmentation Segmenter::segment(const Picture& picture, const std::string& expression) {
    return segment(picture, tokens(expression));
}

Segmentation Segmenter::segment(const Picture& picture, const std::vector<std::int64_t>& ids) {
    const Geometry& geometry = bundle_.geometry;
    Segmentation result;
    result.place = place(picture.size, geometry, bundle_.noise_shape[0]);
    const std::string at_size = geometry.sizes.empty() ? "" : size_name(result.place.resized);

    std::vector<float> embeds = embed(ids);

    const Size grid = result.place.grid;
    const std::int64_t tokens = signed_size(grid.width * grid.height);
    const Tensors inputs{{"image", {{1, 3, signed_size(result.place.bottom - result.place.top),
                                     signed_size(result.place.right - result.place.left)},
                                    to_model(picture, result.place, geometry)}}};
    const Tensors outputs = run("vae_encoder" + at_size, inputs);
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
    const std::int64_t batch = batch_of(spec, graph("text_encoder"), "input_ids"), n_p = signed_size(length);
    Tensors inputs;
    inputs.emplace("input_ids", batched(std::move(padded), {n_p}, batch));
    inputs.emplace("attention_mask", batched(std::move(attention), {n_p}, batch));
    const Tensors outputs = run("text_encoder", inputs);
    const float* row = first_row(outputs, "prompt_embeds", {n_p, -1});
    return {row, row + n_p * outputs.at("prompt_embeds").shape[2]};
}

Localisation Segmenter::localise(const Placement& place, const std::string& at_size,
                                 std::vector<float> latents, std::vector<float> embeds) {
    const std::string name = "transformer." + capture_ + at_size;
    const GraphSpec& spec = bundle_.graph(name);
    const std::int64_t batch = batch_of(spec, graph(name), "clean_latents");
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
    const Tensors outputs = run(name, inputs);

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
