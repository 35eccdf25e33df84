// method_test CASE: one recorded case against the header alone, mask pixel for pixel.
// method_test: what no recording of the runtime can hold, such as null pointers.

#include <cmath>
#include <cstdio>
#include <limits>

#include "recorded.hpp"
#include "rism/method.hpp"

namespace {

int failures = 0;

void expect(bool holds, const std::string& what) {
    if (holds) return;
    ++failures;
    std::printf("FAILED: %s\n", what.c_str());
}

void expect_near(const std::vector<float>& found, const std::vector<float>& wanted, double limit,
                 const std::string& name) {
    expect(found.size() == wanted.size(), name + " has another size");
    double worst = 0.0;
    for (std::size_t i = 0; i < found.size() && i < wanted.size(); ++i) {
        const double error = std::abs(static_cast<double>(found[i]) - wanted[i]);
        worst = error > worst || std::isnan(error) ? error : worst;
    }
    expect(worst <= limit, name + " differs by " + std::to_string(worst));
}

void run(const std::string& folder) {
    auto facts = recorded::facts(folder + "/case.txt");
    const auto floats = [&](const char* name) {
        return recorded::array<float>(folder + "/" + name + ".f32");
    };
    const auto shape = recorded::sizes(facts["shape"]);
    const std::size_t blocks = shape.at(0), tokens = shape.at(1), channels = shape.at(2);
    rism::Options options;
    options.tau = std::stod(facts["tau"]);
    options.prototype =
        facts["prototype"] == "cosine" ? rism::Prototype::cosine : rism::Prototype::equation;

    rism::Localisation found;
    if (facts["capture"] == "scores") {
        const auto scores = floats("scores"), coarse = floats("coarse_attention");
        const auto refined = floats("refined_attention"), fisher = floats("separability");
        found = rism::segment_tokens(rism::ScoresCapture{scores.data(), coarse.data(),
                                                         refined.data(), fisher.at(0), tokens});
    } else {
        const auto attention = floats("attention_vectors"), features = floats("features");
        if (facts["capture"] == "matrices") {
            const auto matrices = floats("transition_matrices");
            found = rism::segment_tokens(
                rism::MatricesCapture{attention.data(), matrices.data(), features.data(), blocks,
                                      tokens, channels},
                options);
        } else {
            const auto propagated = floats("propagated_vectors");
            found = rism::segment_tokens(
                rism::VectorsCapture{attention.data(), propagated.data(), features.data(), blocks,
                                     tokens, channels},
                options);
        }
    }

    const auto p = recorded::sizes(facts["placement"]);
    const rism::Placement place{{p.at(0), p.at(1)}, {p.at(2), p.at(3)}, p.at(4), p.at(5),
                                p.at(6),            p.at(7),            {p.at(8), p.at(9)}};
    const auto mask = rism::mask(found.scores, place);
    const auto wanted = recorded::array<std::uint8_t>(folder + "/mask.u8");
    expect(mask.size() == wanted.size(), "the mask has another size");
    std::size_t differ = 0;
    for (std::size_t i = 0; i < mask.size() && i < wanted.size(); ++i) differ += mask[i] != wanted[i];
    expect(differ == 0, std::to_string(differ) + " pixels of the mask differ");

    expect(rism::describe(found.reason) == facts["reason"],
           "the reason is '" + std::string(rism::describe(found.reason)) + "'");
    expect_near(found.scores, floats("wanted_scores"), 2e-6, "scores");
    expect_near(found.coarse, floats("wanted_coarse"), 2e-6, "coarse");
    expect_near(found.refined, floats("wanted_refined"), 2e-6, "refined");
    const double fisher = std::stod(facts["separability"]);
    expect(std::abs(found.separability - fisher) <= 1e-3 * std::max(fisher, 1e-3),
           "separability is " + std::to_string(found.separability));

    // The whole map says the same as the row-by-row mask.
    const auto full = rism::upsample(found.scores, place);
    bool same = full.size() == mask.size();
    for (std::size_t i = 0; same && i < full.size(); ++i) same = (full[i] > 0.0F) == (mask[i] != 0);
    expect(same, "upsample and mask disagree");
}

void misuse() {
    const std::vector<float> values(12, 1.0F);
    expect(rism::segment_tokens(rism::VectorsCapture{}).reason == rism::Reason::no_input, "null");
    const rism::VectorsCapture no_features{values.data(), values.data(), nullptr, 3, 4, 1};
    const auto answered = rism::segment_tokens(no_features);
    expect(answered.reason == rism::Reason::no_input && answered.scores.size() == 4, "no features");
    expect(rism::segment_tokens(rism::MatricesCapture{}).reason == rism::Reason::no_input, "null");
    expect(rism::segment_tokens(rism::ScoresCapture{}).reason == rism::Reason::no_input, "null");
    expect(rism::minmax({}).empty(), "nothing scaled");
    expect(rism::degenerate({}) == rism::Reason::no_input, "nothing is degenerate");
    const auto grid = rism::Placement::stretch({5, 7}, {4, 3});
    expect(rism::mask(values, grid).size() == 35, "a map of one value");
    expect(rism::mask(values, rism::Placement::stretch({5, 7}, {5, 3})).empty(), "another grid");
    expect(rism::mask(values, rism::Placement::stretch({0, 7}, {4, 3})).empty(), "no picture");
    rism::Placement outside = grid;
    outside.right = 9;
    expect(rism::upsample(values, outside).empty(), "a crop outside of the picture");
    const float infinite = std::numeric_limits<float>::infinity();
    expect(rism::degenerate({1.0F, infinite}) == rism::Reason::attention_not_finite, "infinite");
    expect(rism::degenerate({2.0F, 2.0F}) == rism::Reason::attention_constant, "constant");
    // One block, two tokens: T = [[0, 1], [1, 0]] swaps them.
    const std::vector<float> swap{0, 1, 1, 0}, a{3, 5};
    expect(rism::propagate(swap.data(), a.data(), 1, 2) == std::vector<float>({5, 3}), "T a");
}

}  // namespace

int main(int count, char** values) {
    try {
        count > 1 ? run(values[1]) : misuse();
    } catch (const std::exception& problem) {
        expect(false, problem.what());
    }
    return failures == 0 ? 0 : 1;
}
