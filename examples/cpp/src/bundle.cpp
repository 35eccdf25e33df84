#include "bundle.hpp"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <string_view>

#include "checked_json.hpp"
#include "error.hpp"
#include "sha256.hpp"

namespace fs = std::filesystem;

namespace rism {
namespace {

constexpr std::array<std::string_view, 5> known_graphs{
    "text_encoder", "vae_encoder", "transformer.scores", "transformer.vectors",
    "transformer.matrices"};
// Files that a graph could lead its engine to: lying in the folder unlisted, they are suspect.
constexpr std::array<std::string_view, 6> data_suffixes{".weights", ".onnx", ".data",
                                                        ".bin",     ".f32",  ".plan"};
constexpr std::uint64_t manifest_limit = std::uint64_t{1} << 20U;
constexpr std::uint64_t weights_limit = std::uint64_t{1} << 24U;
constexpr std::size_t most_weights = 4096;

Json parse_manifest(const fs::path& folder) {
    const fs::path path = folder / "manifest.json";
    std::error_code error;
    if (!fs::is_directory(folder, error)) throw Error("no bundle folder at " + folder.string());
    if (!fs::is_regular_file(fs::symlink_status(path, error))) {
        throw Error("no manifest.json in " + folder.string() + ": expected a folder of `rism export`");
    }
    if (const auto size = fs::file_size(path); size > manifest_limit) {
        throw Error("manifest.json has " + std::to_string(size) + " bytes, expected at most 1 MiB");
    }
    std::ifstream stream(path, std::ios::binary);
    try {
        return Json::parse(stream);
    } catch (const Json::exception& problem) {
        throw Error("manifest.json cannot be read (" + std::string(problem.what()) +
                    "): copy or export the bundle again");
    }
}

void check_format(const Node& manifest) {
    if (const auto format = manifest["format"].text(); format != "rism-bundle") {
        throw Error("manifest.json: 'format' is '" + format + "', expected 'rism-bundle'");
    }
    const std::string version = manifest["schema_version"].text();
    const std::size_t dot = version.find('.');
    const auto digits = [](const std::string& part) {
        return !part.empty() && part.find_first_not_of("0123456789") == std::string::npos;
    };
    if (dot == std::string::npos || !digits(version.substr(0, dot)) ||
        !digits(version.substr(dot + 1))) {
        throw Error("manifest.json: 'schema_version' is '" + version + "', expected such as '1.0'");
    }
    if (version.substr(0, dot) != "1") {
        throw Error("the bundle is of format " + version +
                    ", this reader knows format 1: take a newer reader or an older export");
    }
}

std::array<double, 3> channels(const Node& node) {
    if (!node.is_array()) {
        const double value = node.number();
        return {value, value, value};
    }
    const auto items = node.list();
    if (items.size() != 3) throw Error("manifest.json: expected one number or three per channel");
    return {items[0].number(), items[1].number(), items[2].number()};
}

Geometry read_geometry(const Node& node) {
    Geometry geometry;
    geometry.size_level = node["size_level"].size(1, 16384);
    geometry.multiple_px = node["multiple_px"].size(1, 4096);
    geometry.token_px = node["token_px"].size(1, 4096);
    if (geometry.multiple_px % geometry.token_px != 0) {
        throw Error("manifest.json: 'geometry.multiple_px' is no multiple of 'geometry.token_px'");
    }
    geometry.resize_always = node["resize"].word({"always", "shrink"}) == 0;
    geometry.crop = node["remainder"].word({"stretch", "crop"}) == 1;
    geometry.resample = static_cast<Resample>(
        node["resample"].word({"lanczos", "bicubic", "bilinear", "hamming", "box"}));
    geometry.max_aspect = node["max_aspect"].number();
    geometry.mean = channels(node["mean"]);
    geometry.std = channels(node["std"]);
    for (const double value : geometry.std) {
        if (value == 0.0) throw Error("manifest.json: 'geometry.std' is 0");
    }
    if (node.has("rounding")) geometry.round_up = node["rounding"].word({"floor", "ceil"}) == 1;
    if (geometry.round_up && !geometry.resize_always) {
        throw Error("manifest.json: 'geometry.rounding' is 'ceil' where 'resize' is not 'always'");
    }
    if (node.has("resize_in")) {
        geometry.resize_in_float32 = node["resize_in"].word({"uint8", "float32"}) == 1;
    }
    if (!node.has("sizes")) return geometry;
    for (const Node& pair : node["sizes"].list()) {
        const auto sides = pair.list();
        if (sides.size() != 2) throw Error("manifest.json: 'geometry.sizes' is not of [width, height]");
        const Size size{sides[0].size(1, 16384), sides[1].size(1, 16384)};
        if (size.width % geometry.multiple_px != 0 || size.height % geometry.multiple_px != 0) {
            throw Error("manifest.json: 'geometry.sizes' are no multiples of 'multiple_px'");
        }
        geometry.sizes.push_back(size);
    }
    if (geometry.sizes.empty() || geometry.sizes.size() > 64) {
        throw Error("manifest.json: 'geometry.sizes' has " + std::to_string(geometry.sizes.size()) +
                    " sizes, expected 1 to 64");
    }
    return geometry;
}

Prompt read_prompt(const Node& node) {
    // Keys of format 1.2 that change what the prompt is. Their absence, or the value that
    // absence stands for, is all that this reader knows.
    for (const char* key : {"vision", "quotes", "unseen_id"}) {
        if (node.has(key) && !node[key].is_null()) {
            throw Error("the bundle has 'prompt." + std::string(key) +
                        "', which this reader does not know: use `rism run`");
        }
    }
    if (node.has("drop")) {
        if (node["drop"].integer(0, 1 << 20) != 0) {
            throw Error("'prompt.drop' is not 0, which this reader does not know: use `rism run`");
        }
    }
    if (node.has("padding")) node["padding"].word({"tokens"});
    if (node.has("positions")) node["positions"].word({"none"});
    Prompt prompt;
    prompt.template_text = node["template"].text();
    prompt.prefix = node["prefix"].text();
    prompt.suffix = node["suffix"].text();
    prompt.max_length = node["max_length"].size(1, 65536);
    prompt.pad_id = node["pad_id"].integer(0, INT32_MAX);
    prompt.tokenizer = node["tokenizer"].text();
    if (prompt.template_text.find("{expression}") == std::string::npos) {
        throw Error("manifest.json: 'prompt.template' has no {expression} in it");
    }
    return prompt;
}

std::map<std::string, TensorSpec> read_tensors(const Node& node) {
    std::map<std::string, TensorSpec> tensors;
    for (const auto& [key, entry] : node.items()) {
        TensorSpec tensor;
        tensor.name = entry["name"].text();
        tensor.dtype = entry["dtype"].text();
        for (const Node& side : entry["shape"].list()) {
            tensor.shape.push_back(side.is_string() ? -1 : side.integer(1, 1 << 30));
        }
        tensors.emplace(key, std::move(tensor));
    }
    return tensors;
}

/// Only what this reader can take; other variants are for other readers.
EngineVariant read_engine(const Node& node) {
    EngineVariant engine;
    engine.name = node["name"].text();
    engine.target = node["target"].text();
    engine.version = node["version"].text();
    engine.platform = node["platform"].text();
    engine.precision = node["precision"].text();
    engine.stripped = node.has("stripped") && node["stripped"].boolean();
    engine.streamed = node.has("streamed") && node["streamed"].boolean();
    for (const Node& item : node["compute_capabilities"].list()) {
        engine.compute_capabilities.push_back(item.text());
    }
    for (const auto& [name, graph] : node["graphs"].items()) {
        PlanSpec plan{graph["file"].text(), "", ""};
        if (engine.stripped) plan.refit = graph["refit"].text();
        if (graph.has("weights")) plan.weights = graph["weights"].text();
        engine.graphs.emplace(name, std::move(plan));
    }
    return engine;
}

BoundWeight read_weight(const Node& node, const std::string& document,
                        const std::map<std::string, FileEntry>& files) {
    BoundWeight weight;
    weight.file = node["file"].text();
    const auto listed = files.find(weight.file);
    if (listed == files.end()) {
        throw Error(document + " names '" + weight.file + "', which is not among the files of the "
                    "bundle: build the engine again");
    }
    const auto most = static_cast<std::int64_t>(listed->second.size);
    const std::int64_t offset = node["offset"].integer(0, most);
    const std::int64_t length = node["length"].integer(1, most);
    const std::initializer_list<const char*> names{"float32", "int64",         "int32", "float16",
                                                   "bfloat16", "float8_e4m3fn", "bool"};
    const std::array<std::int64_t, 7> sizes{4, 8, 4, 2, 2, 1, 1};
    const std::int64_t elements = length / sizes[node["dtype"].word(names)];
    weight.dtype = node["dtype"].text();
    // What is left of the elements when a side has been taken: no product overflows.
    std::int64_t rest = elements;
    for (const Node& side : node["shape"].list()) {
        weight.shape.push_back(side.integer(1, INT32_MAX));
        rest = rest % weight.shape.back() == 0 ? rest / weight.shape.back() : 0;
    }
    if (rest != 1 || elements * sizes[node["dtype"].word(names)] != length || length > most - offset) {
        throw Error(document + ": '" + weight.file + "' has no " + std::to_string(length) +
                    " bytes of " + weight.dtype + " in the shape that is given at " +
                    std::to_string(offset) + " of " + std::to_string(most) +
                    ": build the engine again");
    }
    weight.offset = static_cast<std::uint64_t>(offset);
    weight.length = static_cast<std::uint64_t>(length);
    return weight;
}

std::map<std::string, FileEntry> read_files(const Node& node) {
    std::map<std::string, FileEntry> files;
    for (const auto& [name, entry] : node.items()) {
        const fs::path path(name);
        bool inside = !name.empty() && !path.has_root_path() && name.back() != '/' &&
                      name.find_first_of(std::string("\\:\0", 3)) == std::string::npos;
        for (const fs::path& part : path) inside = inside && part != ".." && part != ".";
        if (!inside) {
            throw Error("manifest.json lists '" + name + "', which is no path inside the bundle");
        }
        FileEntry file{entry["sha256"].text(), 0};
        file.size = static_cast<std::uint64_t>(entry["size"].integer(0, std::int64_t{1} << 50));
        if (file.sha256.size() != 64 ||
            file.sha256.find_first_not_of("0123456789abcdef") != std::string::npos) {
            throw Error("manifest.json: the sha256 of '" + name + "' is not 64 hexadecimal digits");
        }
        files.emplace(name, std::move(file));
    }
    return files;
}

void refuse_unlisted(const fs::path& folder, const std::map<std::string, FileEntry>& files) {
    for (const fs::directory_entry& entry : fs::recursive_directory_iterator(folder)) {
        const std::string suffix = entry.path().extension().string();
        const std::string name = entry.path().lexically_relative(folder).generic_string();
        // macOS puts these beside files; no graph of ours names them.
        if (entry.path().filename().string().rfind("._", 0) == 0 ||
            ("/" + name).find("/__MACOSX/") != std::string::npos) {
            continue;
        }
        if (std::find(data_suffixes.begin(), data_suffixes.end(), suffix) != data_suffixes.end() &&
            entry.symlink_status().type() != fs::file_type::directory && files.count(name) == 0) {
            throw Error("'" + name + "' lies in the bundle and is not listed in manifest.json: "
                        "remove it, or export the bundle again");
        }
    }
}

std::string hash_file(const fs::path& path) {
    std::ifstream stream(path, std::ios::binary);
    std::vector<char> buffer(std::size_t{1} << 20U);
    Sha256 sha;
    while (stream.read(buffer.data(), static_cast<std::streamsize>(buffer.size())) ||
           stream.gcount() > 0) {
        sha.update(buffer.data(), static_cast<std::size_t>(stream.gcount()));
    }
    return sha.hex();
}

}  // namespace

Bundle::Bundle(fs::path folder, bool trust) : folder_(std::move(folder)), trust_(trust) {
    const Json json = parse_manifest(folder_);
    const Node manifest(json, "");
    check_format(manifest);
    family = manifest["model"]["family"].text();
    precision = manifest["precision"]["compute"].text();
    geometry = read_geometry(manifest["geometry"]);
    prompt = read_prompt(manifest["prompt"]);
    method.tau = manifest["method"]["tau"].number();
    if (const Node rules = manifest["method"]; rules.has("prototype")) {
        method.prototype = static_cast<Prototype>(rules["prototype"].word({"equation", "cosine"}));
    }
    default_capture = manifest["default_capture"].text();
    const Node noise = manifest["noise"];
    noise_file_ = noise["file"].text();
    noise["dtype"].word({"float32"});
    const auto shape = noise["shape"].list();
    if (shape.size() != 2) throw Error("manifest.json: 'noise.shape' is not [rows, channels]");
    noise_shape = {shape[0].size(1, 1 << 24), shape[1].size(1, 1 << 16)};
    for (const auto& [name, node] : manifest["graphs"].items()) {
        const std::string kind = name.substr(0, name.find('@'));
        // What a newer format may add is not for this reader.
        if (std::find(std::begin(known_graphs), std::end(known_graphs), kind) ==
            std::end(known_graphs)) {
            continue;
        }
        GraphSpec spec{node["file"].text(), read_tensors(node["inputs"]),
                       read_tensors(node["outputs"])};
        graphs.emplace(name, std::move(spec));
    }
    if (manifest.has("engines")) {
        for (const Node& node : manifest["engines"].list()) engines.push_back(read_engine(node));
    }
    files_ = read_files(manifest["files"]);
    const auto listed = files_.find(noise_file_);
    if (listed == files_.end() ||
        listed->second.size != std::uint64_t{noise_shape[0]} * noise_shape[1] * sizeof(float)) {
        throw Error("manifest.json: '" + noise_file_ + "' is not listed with the size of "
                    "'noise.shape': export the bundle again");
    }
    refuse_unlisted(folder_, files_);
}

fs::path Bundle::file(const std::string& name) {
    const auto entry = files_.find(name);
    if (entry == files_.end()) {
        throw Error("'" + name + "' is not among the files of the bundle: export it again");
    }
    fs::path path = folder_;
    fs::file_status status;
    std::error_code error;
    for (const fs::path& part : fs::path(name)) {
        path /= part;
        status = fs::symlink_status(path, error);
        if (fs::is_symlink(status)) throw Error("'" + name + "' is reached by a link, expected none");
    }
    if (!fs::is_regular_file(status)) {
        throw Error("the bundle lacks its file '" + name + "': copy or export it again");
    }
    const auto size = fs::file_size(path);
    if (size != entry->second.size) {
        throw Error("'" + name + "' has " + std::to_string(size) + " bytes, expected " +
                    std::to_string(entry->second.size) + ": copy or export the bundle again");
    }
    if (!trust_ && verified_.count(name) == 0) {
        if (hash_file(path) != entry->second.sha256) {
            throw Error("'" + name + "' is not what the manifest lists (its sha256 differs): "
                        "copy or export the bundle again");
        }
        verified_.insert(name);
    }
    return path;
}

std::vector<char> Bundle::read(const std::string& name, std::uint64_t limit) {
    const fs::path path = file(name);
    const auto size = files_.at(name).size;
    if (size > limit) {
        throw Error("'" + name + "' has " + std::to_string(size) + " bytes, expected at most " +
                    std::to_string(limit));
    }
    std::vector<char> bytes(size);
    std::ifstream stream(path, std::ios::binary);
    if (!stream.read(bytes.data(), static_cast<std::streamsize>(size))) {
        throw Error("'" + name + "' cannot be read");
    }
    return bytes;
}

std::map<std::string, BoundWeight> Bundle::weights(const std::string& name) {
    const std::vector<char> bytes = read(name, weights_limit);
    Json json;
    try {
        json = Json::parse(bytes);
    } catch (const Json::exception& problem) {
        throw Error("'" + name + "' cannot be read (" + std::string(problem.what()) +
                    "): build the engine again");
    }
    const auto items = Node(json, "", name).items();
    if (items.size() > most_weights) {
        throw Error("'" + name + "' lists " + std::to_string(items.size()) +
                    " weights, expected at most " + std::to_string(most_weights));
    }
    std::map<std::string, BoundWeight> found;
    for (const auto& [key, node] : items) found.emplace(key, read_weight(node, name, files_));
    return found;
}

std::vector<char> Bundle::read(const BoundWeight& weight) {
    std::ifstream stream(file(weight.file), std::ios::binary);
    std::vector<char> bytes(weight.length);
    if (!stream.seekg(static_cast<std::streamoff>(weight.offset)) ||
        !stream.read(bytes.data(), static_cast<std::streamsize>(weight.length))) {
        throw Error("'" + weight.file + "' cannot be read");
    }
    return bytes;
}

void Bundle::verify_weights() {
    const std::string ending = ".weights";
    for (const auto& item : files_) {
        const std::string& name = item.first;
        if (name.size() > ending.size() &&
            name.compare(name.size() - ending.size(), ending.size(), ending) == 0) {
            file(name);
        }
    }
}

std::vector<float> Bundle::noise(std::size_t rows) {
    const std::vector<char> bytes = read(noise_file_, files_.at(noise_file_).size);
    if (rows > noise_shape[0]) throw Error("there is no noise for that many tokens");
    // The file is little-endian, as are all machines that the engines run on.
    std::vector<float> values(rows * noise_shape[1]);
    std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
    return values;
}

const GraphSpec& Bundle::graph(const std::string& name) const {
    const auto found = graphs.find(name);
    if (found != graphs.end()) return found->second;
    std::string list;
    for (const auto& item : graphs) list += (list.empty() ? "" : ", ") + item.first;
    throw Error("the bundle has no graph '" + name + "', it has " + list);
}

}  // namespace rism
