#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "error.hpp"

namespace rism {

using Json = nlohmann::json;

/// A value of a file, the manifest or another, that knows where it stands. Whatever is wrong with
/// it is an Error that names the file and the key.
class Node {
public:
    Node(const Json& value, std::string path, std::string document = "manifest.json")
        : value_(value), path_(std::move(path)), document_(std::move(document)) {}

    bool has(const char* key) const { return value_.is_object() && value_.contains(key); }

    Node operator[](const char* key) const {
        if (!value_.is_object()) fail("an object");
        const auto found = value_.find(key);
        const std::string path = path_.empty() ? key : path_ + "." + key;
        if (found == value_.end()) throw Error(document_ + " has no '" + path + "'");
        return {*found, path, document_};
    }

    std::string text() const {
        if (!value_.is_string()) fail("a string");
        return value_.get<std::string>();
    }
    bool boolean() const {
        if (!value_.is_boolean()) fail("true or false");
        return value_.get<bool>();
    }
    double number() const {
        if (!value_.is_number() || !std::isfinite(value_.get<double>())) fail("a number");
        return value_.get<double>();
    }
    std::int64_t integer(std::int64_t low, std::int64_t high) const {
        if (!value_.is_number_integer() || value_ < low || value_ > high) {
            fail("a whole number from " + std::to_string(low) + " to " + std::to_string(high));
        }
        return value_.get<std::int64_t>();
    }
    std::size_t size(std::int64_t low, std::int64_t high) const {
        return static_cast<std::size_t>(integer(low, high));
    }
    /// One of the given words; its place among them.
    std::size_t word(std::initializer_list<const char*> words) const {
        const std::string given = text();
        std::size_t place = 0;
        for (const char* word : words) {
            if (given == word) return place;
            ++place;
        }
        std::string list;
        for (const char* word : words) list += (list.empty() ? "" : ", ") + std::string(word);
        throw Error(document_ + ": '" + path_ + "' is '" + given + "', this reader knows " + list);
    }
    std::vector<Node> list() const {
        if (!value_.is_array()) fail("a list");
        std::vector<Node> nodes;
        for (const Json& item : value_) {
            nodes.emplace_back(item, path_ + "[" + std::to_string(nodes.size()) + "]", document_);
        }
        return nodes;
    }
    std::vector<std::pair<std::string, Node>> items() const {
        if (!value_.is_object()) fail("an object");
        std::vector<std::pair<std::string, Node>> nodes;
        for (const auto& [key, item] : value_.items()) {
            nodes.emplace_back(key, Node(item, path_.empty() ? key : path_ + "." + key, document_));
        }
        return nodes;
    }
    bool is_string() const { return value_.is_string(); }
    bool is_array() const { return value_.is_array(); }
    bool is_null() const { return value_.is_null(); }

private:
    [[noreturn]] void fail(const std::string& expected) const {
        std::string given = value_.dump(-1, ' ', true, Json::error_handler_t::replace);
        if (given.size() > 40) given = given.substr(0, 40) + "...";
        throw Error(document_ + ": '" + path_ + "' is " + given + ", expected " + expected);
    }

    const Json& value_;
    std::string path_, document_;
};

}  // namespace rism
