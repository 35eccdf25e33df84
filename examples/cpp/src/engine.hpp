#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "bundle.hpp"

namespace rism {

/// A row-major array in host memory, of the two types that a bundle's graphs take and give.
struct Tensor {
    std::vector<std::int64_t> shape;
    std::variant<std::vector<float>, std::vector<std::int64_t>> values;

    const std::vector<float>& floats() const { return std::get<std::vector<float>>(values); }
    bool is_int64() const { return values.index() == 1; }
    std::size_t size() const {
        return std::visit([](const auto& list) { return list.size(); }, values);
    }
};

/// Arrays by the names of docs/bundle.md, whatever the graph's file calls them.
using Tensors = std::map<std::string, Tensor>;

/// One loaded graph. Not for two threads at once.
class Graph {
public:
    virtual ~Graph() = default;

    /// Takes exactly the graph's inputs, gives all of its outputs. Throws Error.
    virtual Tensors run(const Tensors& inputs) = 0;

    /// The fewest rows of an input that a run may have, where the manifest's shape does not say.
    virtual std::int64_t smallest_batch(const std::string& /*input*/) const { return 1; }
};

/// What runs graphs. It keeps a reference to the bundle, which has to outlive it.
class Engine {
public:
    virtual ~Engine() = default;

    /// Whether there is a graph of that name in the manifest, and in the engine if it has its own.
    virtual bool has(const std::string& name) const = 0;

    /// Loads a graph by its name in the manifest, such as `transformer.scores`. Throws Error.
    virtual std::unique_ptr<Graph> load(const std::string& name) = 0;

    /// What runs them and where, in a few words.
    virtual std::string describe() const = 0;
};

/// The engine that this program was built with. `variant` names one of `engines` of the
/// manifest, for TensorRT; empty for the first that fits. Throws Error.
std::unique_ptr<Engine> make_engine(Bundle& bundle, const std::string& variant);

}  // namespace rism
