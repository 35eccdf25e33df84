// The TensorRT engine around the library of fake_tensorrt:
//   engine_test BUNDLE GRAPH H W [H W]...
// Runs the graph of an image on zeros of each size; prints the first value of each output, then
// the largest block of device memory that was asked for.

#include <cuda_runtime_api.h>

#include <iostream>

#include "engine.hpp"
#include "error.hpp"

int main(int count, char** words) {
    try {
        rism::Bundle bundle(words[1]);
        const auto engine = rism::make_engine(bundle, "");
        const auto graph = engine->load(words[2]);
        for (int i = 3; i + 1 < count; i += 2) {
            const std::int64_t height = std::stoll(words[i]), width = std::stoll(words[i + 1]);
            rism::Tensor image{{1, 3, height, width},
                               std::vector<float>(static_cast<std::size_t>(3 * height * width))};
            rism::Tensors inputs;
            inputs.emplace("image", std::move(image));
            std::cout << graph->run(inputs).at("clean_latents").floats().at(0) << '\n';
        }
        std::cout << fake::largest << '\n';
        return 0;
    } catch (const rism::Error& error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
}
