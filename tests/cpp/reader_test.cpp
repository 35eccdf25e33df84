// The reader without engine and codecs:
//   reader_test tokens TOKENIZER.json       texts on stdin, one in hexadecimal a line -> ids
//   reader_test sha256                      the digest of stdin
//   reader_test resize RGB W H w h FILTER OUTPUT
//   reader_test weights BUNDLE LIST         of each: name file offset length dtype shape; digest
//   reader_test segment BUNDLE RGB W H EXPRESSION RECORDING CAPTURE MASK

#include <cstdio>
#include <cstring>
#include <iostream>
#include <iterator>

#include "error.hpp"
#include "pipeline.hpp"
#include "recorded.hpp"
#include "resample.hpp"
#include "sha256.hpp"

namespace {

/// A graph that answers what it was recorded to answer, if it is asked what was recorded.
class RecordedGraph : public rism::Graph {
public:
    RecordedGraph(const rism::GraphSpec& spec, std::string folder)
        : spec_(spec), folder_(std::move(folder)) {}

    rism::Tensors run(const rism::Tensors& inputs) override {
        for (const auto& item : spec_.inputs) compare(item.first, inputs.at(item.first));
        rism::Tensors outputs;
        for (const auto& item : spec_.outputs) {
            const auto fact = recorded::facts(folder_ + "/shapes.txt").at("out." + item.first);
            rism::Tensor tensor;
            for (const std::size_t side : recorded::sizes(fact)) {
                tensor.shape.push_back(static_cast<std::int64_t>(side));
            }
            tensor.values = recorded::array<float>(folder_ + "/out." + item.first);
            outputs.emplace(item.first, std::move(tensor));
        }
        return outputs;
    }

private:
    void compare(const std::string& name, const rism::Tensor& tensor) {
        std::string shape;
        for (const auto side : tensor.shape) shape += (shape.empty() ? "" : " ") + std::to_string(side);
        const auto wanted = recorded::facts(folder_ + "/shapes.txt").at("in." + name);
        const auto bytes = recorded::array<char>(folder_ + "/in." + name);
        const bool same = std::visit(
            [&](const auto& list) {
                return bytes.size() == list.size() * sizeof(list[0]) &&
                       std::memcmp(bytes.data(), list.data(), bytes.size()) == 0;
            },
            tensor.values);
        if (!same || shape != wanted) {
            throw rism::Error("'" + name + "' of " + spec_.file + " is not what the runtime feeds (" +
                              shape + ", recorded " + wanted + ")");
        }
    }

    const rism::GraphSpec& spec_;
    std::string folder_;
};

class RecordedEngine : public rism::Engine {
public:
    RecordedEngine(rism::Bundle& bundle, std::string folder)
        : bundle_(bundle), folder_(std::move(folder)) {}
    bool has(const std::string& name) const override { return bundle_.graphs.count(name) > 0; }
    std::unique_ptr<rism::Graph> load(const std::string& name) override {
        const rism::GraphSpec& spec = bundle_.graph(name);
        bundle_.file(spec.file);
        bundle_.verify_weights();
        return std::make_unique<RecordedGraph>(spec, folder_ + "/" + name);
    }
    std::string describe() const override { return "a recording"; }

private:
    rism::Bundle& bundle_;
    std::string folder_;
};

void tokens(const std::string& file) {
    const rism::Tokenizer tokenizer(recorded::array<char>(file));
    for (std::string line; std::getline(std::cin, line);) {
        std::string text;
        for (std::size_t i = 0; i + 1 < line.size(); i += 2) {
            text += static_cast<char>(std::stoi(line.substr(i, 2), nullptr, 16));
        }
        for (const auto id : tokenizer.encode(text)) std::cout << id << ' ';
        std::cout << '\n';
    }
}

void write(const std::string& file, const std::vector<std::uint8_t>& bytes) {
    std::ofstream stream(file, std::ios::binary);
    stream.write(reinterpret_cast<const char*>(bytes.data()),
                 static_cast<std::streamsize>(bytes.size()));
}

void run(const std::vector<std::string>& words) {
    const auto number = [&](std::size_t i) { return static_cast<std::size_t>(std::stoul(words.at(i))); };
    if (words.at(0) == "tokens") {
        tokens(words.at(1));
    } else if (words[0] == "sha256") {
        const std::vector<char> bytes{std::istreambuf_iterator<char>(std::cin), {}};
        rism::Sha256 sha;
        // In pieces of many sizes: borders between them must not show.
        for (std::size_t at = 0, step = 1; at < bytes.size(); at += step, step = step % 200 + 1) {
            sha.update(bytes.data() + at, std::min(step, bytes.size() - at));
        }
        std::cout << sha.hex() << '\n';
    } else if (words[0] == "resize") {
        const auto bytes = rism::resample(
            recorded::array<std::uint8_t>(words.at(1)), {number(2), number(3)},
            {number(4), number(5)}, 3, static_cast<rism::Resample>(number(6)));
        write(words.at(7), bytes);
    } else if (words[0] == "weights") {
        rism::Bundle bundle(words.at(1));
        for (const auto& [name, weight] : bundle.weights(words.at(2))) {
            std::cout << name << ' ' << weight.file << ' ' << weight.offset << ' ' << weight.length
                      << ' ' << weight.dtype;
            for (const auto side : weight.shape) std::cout << ' ' << side;
            rism::Sha256 sha;
            const std::vector<char> bytes = bundle.read(weight);
            sha.update(bytes.data(), bytes.size());
            std::cout << ' ' << sha.hex() << '\n';
        }
    } else {
        rism::Bundle bundle(words.at(1));
        const rism::Picture picture{{number(3), number(4)},
                                    recorded::array<std::uint8_t>(words.at(2))};
        RecordedEngine engine(bundle, words.at(6));
        rism::Segmenter segmenter(bundle, engine, words.at(7));
        const auto result = segmenter.segment(picture, words.at(5));
        write(words.at(8), result.mask);
        std::cout << rism::describe(result.found.reason) << '\n';
    }
}

}  // namespace

int main(int count, char** values) {
    try {
        run(std::vector<std::string>(values + 1, values + count));
        return 0;
    } catch (const std::exception& problem) {
        std::fprintf(stderr, "error: %s\n", problem.what());
        return 1;
    }
}
