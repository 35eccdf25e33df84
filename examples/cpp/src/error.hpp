#pragma once

#include <stdexcept>
#include <string>

namespace rism {

/// One line: what was wrong, what was expected, and where possible what mends it.
class Error : public std::runtime_error {
public:
    explicit Error(const std::string& what) : std::runtime_error(what) {}
};

}  // namespace rism
