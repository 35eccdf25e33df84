// picture_test read FILE OUTPUT       decoded RGB to OUTPUT, "W H" on stdout
// picture_test write MASK W H OUTPUT  a mask of 0 and 1 to a PNG

#include "picture.hpp"

#include <cstdio>
#include <iostream>

#include "recorded.hpp"

int main(int count, char** values) {
    try {
        const std::vector<std::string> words(values + 1, values + count);
        if (words.at(0) == "read") {
            const rism::Picture picture = rism::read_picture(words.at(1));
            std::ofstream(words.at(2), std::ios::binary)
                .write(reinterpret_cast<const char*>(picture.rgb.data()),
                       static_cast<std::streamsize>(picture.rgb.size()));
            std::cout << picture.size.width << ' ' << picture.size.height << '\n';
        } else {
            rism::write_mask(words.at(4), recorded::array<std::uint8_t>(words.at(1)),
                             {std::stoul(words.at(2)), std::stoul(words.at(3))});
        }
        return 0;
    } catch (const std::exception& problem) {
        std::fprintf(stderr, "error: %s\n", problem.what());
        return 1;
    }
}
