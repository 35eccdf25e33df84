#include "tokenizer.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>

#include "error.hpp"

namespace rism {
namespace {

using Json = nlohmann::json;

constexpr const char* split_pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

[[noreturn]] void refuse(const std::string& what) {
    throw Error("tokenizer.json has " + what + ", which this reader does not know: "
                "give the token ids with --ids");
}

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_line_end(char c) { return c == '\r' || c == '\n'; }
bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
bool is_other(char c) { return !is_space(c) && !is_letter(c) && !is_digit(c); }

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

std::size_t contraction(const std::string& text, std::size_t at) {
    if (text[at] != '\'') return 0;
    for (const char* ending : {"s", "t", "re", "ve", "m", "ll", "d"}) {
        std::size_t i = 0;
        while (ending[i] != '\0' && at + 1 + i < text.size() && lower(text[at + 1 + i]) == ending[i]) {
            ++i;
        }
        if (ending[i] == '\0') return 1 + i;
    }
    return 0;
}

/// Length of the word that begins at `at`: the alternatives of `split_pattern`, in order.
std::size_t word_length(const std::string& text, std::size_t at) {
    const auto run = [&](std::size_t from, bool (*kind)(char)) {
        while (from < text.size() && kind(text[from])) ++from;
        return from;
    };
    if (const std::size_t length = contraction(text, at); length > 0) return length;
    const char first = text[at];
    const bool may_lead = !is_line_end(first) && !is_letter(first) && !is_digit(first);
    if (const std::size_t start = at + (may_lead ? 1 : 0);
        start < text.size() && is_letter(text[start])) {
        return run(start, is_letter) - at;
    }
    if (is_digit(first)) return 1;
    if (const std::size_t start = at + (first == ' ' ? 1 : 0);
        start < text.size() && is_other(text[start])) {
        return run(run(start, is_other), is_line_end) - at;
    }
    const std::size_t end = run(at, is_space);
    for (std::size_t last = end; last > at; --last) {
        if (is_line_end(text[last - 1])) return last - at;  // \s*[\r\n]+
    }
    // \s+(?!\S): all but the space that the next word begins with.
    return end < text.size() && end - at > 1 ? end - at - 1 : end - at;
}

/// Each byte as the printable character that the vocabulary writes it with, in UTF-8.
std::array<std::string, 128> byte_characters() {
    std::array<std::string, 128> names;
    unsigned next = 0x100;
    for (unsigned byte = 0; byte < 128; ++byte) {
        if (byte > ' ' && byte < 127) {
            names[byte] = std::string(1, static_cast<char>(byte));
        } else {
            names[byte] = {static_cast<char>(0xC0U | next >> 6U),
                           static_cast<char>(0x80U | (next & 0x3FU))};
            ++next;
        }
    }
    return names;
}

bool absent(const Json& object, const char* key) {
    const auto found = object.find(key);
    return found == object.end() || found->is_null() || *found == "" || *found == false;
}

void check_pre_tokenizer(const Json& json) {
    const Json& steps = json.at("pre_tokenizer");
    if (steps.at("type") != "Sequence" || steps.at("pretokenizers").size() != 2) {
        refuse("another pre-tokenizer than a split and ByteLevel");
    }
    const Json& split = steps.at("pretokenizers")[0];
    const Json& bytes = steps.at("pretokenizers")[1];
    if (split.at("type") != "Split" || split.at("pattern").value("Regex", "") != split_pattern ||
        split.at("behavior") != "Isolated" || split.at("invert") != false) {
        refuse("another split than Qwen's");
    }
    if (bytes.at("type") != "ByteLevel" || bytes.at("add_prefix_space") != false ||
        bytes.value("use_regex", true)) {
        refuse("a ByteLevel step with a prefix space or a split of its own");
    }
}

void check_kind(const Json& json) {
    if (!absent(json, "normalizer") && json["normalizer"].at("type") != "NFC") {
        refuse("another normalizer than NFC");
    }
    check_pre_tokenizer(json);
    const Json& model = json.at("model");
    if (model.at("type") != "BPE") refuse("another model than BPE");
    for (const char* key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix",
                            "byte_fallback"}) {
        if (!absent(model, key)) refuse(std::string("'model.") + key + "'");
    }
}

}  // namespace

Tokenizer::Tokenizer(const std::vector<char>& bytes) try {
    const Json json = Json::parse(bytes.begin(), bytes.end());
    check_kind(json);
    const Json& model = json.at("model");
    ignore_merges_ = model.value("ignore_merges", false);
    for (const auto& [token, id] : model.at("vocab").items()) {
        vocabulary_.emplace(token, id.get<std::int64_t>());
    }
    std::uint32_t rank = 0;
    for (const Json& merge : model.at("merges")) {
        std::string left, right;
        if (merge.is_string()) {  // "left right", as older files have it
            const auto both = merge.get<std::string>();
            const std::size_t space = both.find(' ');
            left = both.substr(0, space);
            right = space == std::string::npos ? "" : both.substr(space + 1);
        } else {
            left = merge.at(0).get<std::string>();
            right = merge.at(1).get<std::string>();
        }
        const auto l = vocabulary_.find(left), r = vocabulary_.find(right);
        const auto joined = vocabulary_.find(left + right);
        if (l == vocabulary_.end() || r == vocabulary_.end() || joined == vocabulary_.end()) {
            throw Error("tokenizer.json merges '" + left + "' and '" + right +
                        "', which its vocabulary lacks: export the bundle again");
        }
        merges_.emplace(std::make_pair(l->second, r->second), Merge{rank++, joined->second});
    }
    for (const Json& token : json.at("added_tokens")) {
        for (const char* key : {"single_word", "lstrip", "rstrip", "normalized"}) {
            if (token.value(key, false)) refuse(std::string("an added token with '") + key + "'");
        }
        const auto content = token.at("content").get<std::string>();
        if (content.empty()) refuse("an empty added token");
        added_.emplace_back(content, token.at("id").get<std::int64_t>());
        if (token.value("special", false) || content[0] == '<') control_.push_back(content);
    }
    std::stable_sort(added_.begin(), added_.end(), [](const auto& a, const auto& b) {
        return a.first.size() > b.first.size();
    });
} catch (const nlohmann::json::exception& problem) {
    throw Error("tokenizer.json cannot be read (" + std::string(problem.what()) +
                "): export the bundle again");
}

std::string Tokenizer::control_token_in(const std::string& text) const {
    for (const std::string& token : control_) {
        if (text.find(token) != std::string::npos) return token;
    }
    return "";
}

std::vector<std::int64_t> Tokenizer::encode(const std::string& text) const {
    for (const char c : text) {
        if (static_cast<unsigned char>(c) >= 128) {
            throw Error("the text has characters beyond ASCII, which this reader's tokenizer does "
                        "not know: give the token ids with --ids");
        }
    }
    std::vector<std::int64_t> ids;
    // Added tokens stand for themselves; what is between them is split into words.
    std::size_t start = 0;
    const auto flush = [&](std::size_t end) {
        const std::string part = text.substr(start, end - start);
        for (std::size_t at = 0; at < part.size();) {
            const std::size_t length = word_length(part, at);
            merge_word(part.substr(at, length), ids);
            at += length;
        }
    };
    for (std::size_t at = 0; at < text.size();) {
        const auto found = std::find_if(added_.begin(), added_.end(), [&](const auto& token) {
            return text.compare(at, token.first.size(), token.first) == 0;
        });
        if (found == added_.end()) {
            ++at;
            continue;
        }
        flush(at);
        ids.push_back(found->second);
        at += found->first.size();
        start = at;
    }
    flush(text.size());
    return ids;
}

void Tokenizer::merge_word(const std::string& word, std::vector<std::int64_t>& ids) const {
    static const std::array<std::string, 128> names = byte_characters();
    std::string spelled;
    for (const char c : word) spelled += names[static_cast<unsigned char>(c)];
    if (ignore_merges_) {
        if (const auto whole = vocabulary_.find(spelled); whole != vocabulary_.end()) {
            ids.push_back(whole->second);
            return;
        }
    }
    std::vector<std::int64_t> parts;
    for (const char c : word) {
        const auto id = vocabulary_.find(names[static_cast<unsigned char>(c)]);
        if (id == vocabulary_.end()) {
            throw Error("tokenizer.json lacks a token for byte " +
                        std::to_string(static_cast<int>(c)) + ": export the bundle again");
        }
        parts.push_back(id->second);
    }
    while (parts.size() > 1) {
        Merge best{std::numeric_limits<std::uint32_t>::max(), 0};
        std::size_t place = 0;
        for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
            const auto merge = merges_.find({parts[i], parts[i + 1]});
            if (merge != merges_.end() && merge->second.rank < best.rank) {
                best = merge->second;
                place = i;
            }
        }
        if (best.rank == std::numeric_limits<std::uint32_t>::max()) break;
        parts[place] = best.id;
        parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(place) + 1);
    }
    ids.insert(ids.end(), parts.begin(), parts.end());
}

}  // namespace rism
