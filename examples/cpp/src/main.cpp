// rism_cpp BUNDLE PICTURE EXPRESSION MASK.png: docs/bundle.md, from a picture to a mask.

#include <cstdio>
#include <exception>
#include <new>
#include <sstream>
#include <string>
#include <vector>

#include "engine.hpp"
#include "error.hpp"
#include "picture.hpp"
#include "pipeline.hpp"

namespace {

constexpr const char* usage =
    "usage: rism_cpp [options] BUNDLE PICTURE EXPRESSION MASK.png\n"
    "\n"
    "Marks what EXPRESSION refers to in PICTURE (PNG or JPEG) with the model in the folder BUNDLE.\n"
    "\n"
    "  --capture MODE  scores, vectors or matrices; left out, scores where the bundle has it\n"
    "  --ids 1,2,3     token ids of the whole prompt, without padding, in place of EXPRESSION\n"
    "  --engine NAME   one of the bundle's TensorRT engines; left out, the first that fits\n"
    "  --trust         do not hash the bundle's files\n"
    "\n"
    "Exit codes: 0 done, 1 something failed (one line on stderr says what), 2 wrong usage.\n";

struct Arguments {
    std::vector<std::string> places;
    std::string capture, engine;
    std::vector<std::int64_t> ids;
    bool trust = false, help = false;
};

std::vector<std::int64_t> parse_ids(const std::string& list) {
    std::vector<std::int64_t> ids;
    std::istringstream stream(list);
    for (std::string item; std::getline(stream, item, ',');) {
        if (item.empty() || item.size() > 9 ||
            item.find_first_not_of("0123456789") != std::string::npos) {
            throw rism::Error("--ids has '" + item + "', expected whole numbers such as 1,2,3");
        }
        ids.push_back(std::stoll(item));
    }
    return ids;
}

/// False for wrong usage.
bool parse(int count, char** values, Arguments& arguments) {
    for (int i = 1; i < count; ++i) {
        const std::string item = values[i];
        if (item == "--help" || item == "-h") {
            arguments.help = true;
        } else if (item == "--trust") {
            arguments.trust = true;
        } else if (item == "--capture" || item == "--engine" || item == "--ids") {
            if (++i == count) return false;
            if (item == "--capture") arguments.capture = values[i];
            if (item == "--engine") arguments.engine = values[i];
            if (item == "--ids") arguments.ids = parse_ids(values[i]);
        } else if (item.size() > 1 && item[0] == '-') {
            return false;
        } else {
            arguments.places.push_back(item);
        }
    }
    return arguments.help || arguments.places.size() == (arguments.ids.empty() ? 4U : 3U);
}

void run(const Arguments& arguments) {
    const auto& places = arguments.places;
    rism::Bundle bundle(places[0], arguments.trust);
    const rism::Picture picture = rism::read_picture(places[1]);
    const auto engine = rism::make_engine(bundle, arguments.engine);
    rism::Segmenter segmenter(bundle, *engine, arguments.capture);
    const rism::Segmentation result = arguments.ids.empty()
                                          ? segmenter.segment(picture, places[2])
                                          : segmenter.segment(picture, arguments.ids);
    rism::write_mask(places.back(), result.mask, picture.size);
    std::size_t inside = 0;
    for (const std::uint8_t pixel : result.mask) inside += pixel;
    std::printf("%s: %.2f %% of the picture, separability %.3f, %s (%s)\n", places.back().c_str(),
                100.0 * static_cast<double>(inside) / static_cast<double>(result.mask.size()),
                result.found.separability, engine->describe().c_str(),
                segmenter.capture().c_str());
    if (result.found.reason != rism::Reason::none) {
        std::printf("the mask is empty: %s\n", rism::describe(result.found.reason));
    }
}

}  // namespace

int main(int count, char** values) {
    try {
        Arguments arguments;
        if (!parse(count, values, arguments)) {
            std::fputs(usage, stderr);
            return 2;
        }
        if (arguments.help) {
            std::fputs(usage, stdout);
            return 0;
        }
        run(arguments);
        return 0;
    } catch (const std::bad_alloc&) {
        std::fputs("rism_cpp: error: out of memory\n", stderr);
    } catch (const std::exception& problem) {
        std::string line = problem.what();
        for (char& c : line) c = c == '\n' || c == '\r' ? ' ' : c;
        std::fprintf(stderr, "rism_cpp: error: %s\n", line.c_str());
    }
    return 1;
}
