#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace rism {

/// A byte-level BPE `tokenizer.json`, such as those of Qwen, for text of ASCII characters.
///
/// What it can't do is refused by name when the file is read: other models, normalisers but NFC
/// (which leaves ASCII as it is), other splits than Qwen's, added tokens that take the spaces
/// around them. Text that is not ASCII is refused when it is given.
class Tokenizer {
public:
    /// Reads the JSON. Throws Error.
    explicit Tokenizer(const std::vector<char>& json);

    /// Token ids without added special tokens.
    std::vector<std::int64_t> encode(const std::string& text) const;

    /// The first control token that is written out in a text, or an empty string.
    std::string control_token_in(const std::string& text) const;

private:
    struct Merge {
        std::uint32_t rank = 0;
        std::int64_t id = 0;
    };
    struct PairHash {
        std::size_t operator()(const std::pair<std::int64_t, std::int64_t>& pair) const {
            return std::hash<std::int64_t>()(pair.first * 1000003 + pair.second);
        }
    };

    void merge_word(const std::string& word, std::vector<std::int64_t>& ids) const;

    std::vector<std::pair<std::string, std::int64_t>> added_;  // the longest first
    std::vector<std::string> control_;
    std::unordered_map<std::string, std::int64_t> vocabulary_;
    std::unordered_map<std::pair<std::int64_t, std::int64_t>, Merge, PairHash> merges_;
    bool ignore_merges_ = false;
};

}  // namespace rism
