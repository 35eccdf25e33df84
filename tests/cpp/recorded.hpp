// What the tests recorded: raw little-endian arrays beside a text file.
#pragma once

#include <cstddef>
#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace recorded {

template <typename T>
std::vector<T> array(const std::string& file) {
    std::ifstream stream(file, std::ios::binary | std::ios::ate);
    if (!stream) throw std::runtime_error("no recording " + file);
    std::vector<T> values(static_cast<std::size_t>(stream.tellg()) / sizeof(T));
    stream.seekg(0);
    stream.read(reinterpret_cast<char*>(values.data()),
                static_cast<std::streamsize>(values.size() * sizeof(T)));
    return values;
}

/// Lines of "key value value ..."; the first word of each is its key.
inline std::map<std::string, std::string> facts(const std::string& file) {
    std::ifstream stream(file);
    if (!stream) throw std::runtime_error("no recording " + file);
    std::map<std::string, std::string> found;
    for (std::string line; std::getline(stream, line);) {
        const std::size_t space = line.find(' ');
        found[line.substr(0, space)] = space == std::string::npos ? "" : line.substr(space + 1);
    }
    return found;
}

inline std::vector<std::size_t> sizes(const std::string& text) {
    std::istringstream stream(text);
    std::vector<std::size_t> values;
    for (std::size_t value; stream >> value;) values.push_back(value);
    return values;
}

}  // namespace recorded
