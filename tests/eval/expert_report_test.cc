#include "eval/expert_report.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/random.h"
#include "eval/expert_page.h"

namespace mixtral {
namespace {

constexpr double kLog2 = 0.6931471805599453;

/// Logits that make `first` and then `second` of four experts the most probable.
std::vector<double> logits_for(const std::vector<std::pair<int32_t, int32_t>>& choices) {
  std::vector<double> logits;
  for (const auto& [first, second] : choices)
    for (int32_t e = 0; e < 4; ++e) logits.push_back(e == first ? 3 : e == second ? 2 : 0);
  return logits;
}

std::vector<int32_t> chosen(const std::vector<std::pair<int32_t, int32_t>>& choices) {
  std::vector<int32_t> experts;
  for (const auto& [first, second] : choices) experts.insert(experts.end(), {first, second});
  return experts;
}

/// Six tokens of one layer: letters to 0 and 1, digits to 2 and 0; 3 is dead.
ExpertReport small_report() {
  ExpertReport report(1, 4, 2, 4);
  const std::vector<std::pair<int32_t, int32_t>> choices{{0, 1}, {0, 1}, {1, 0},
                                                         {2, 0}, {2, 0}, {0, 1}};
  const auto logits = logits_for(choices);
  const auto experts = chosen(choices);
  using enum TokenKind;
  const std::vector<TokenKind> kinds{word_start, continuation, continuation,
                                     digit,      digit,        continuation};
  const std::vector<LayerRoute> routes{{.logits = logits, .expert = experts}};
  report.add(std::vector<int32_t>{'a', 'b', 'c', '1', '1', 'b'}, kinds, routes);
  return report;
}

TEST(Entropy, IsThatOfTheShares) {
  EXPECT_NEAR(entropy_of(std::vector<double>{3, 3}), kLog2, 1e-12);
  EXPECT_EQ(entropy_of(std::vector<double>{0, 5, 0}), 0);
  EXPECT_EQ(entropy_of(std::vector<double>{0, 0}), 0);
  EXPECT_NEAR(entropy_of(std::vector<double>(8, 0.25)), std::log(8), 1e-12);
}

TEST(PositionRanges, CoverEveryPositionInOrder) {
  EXPECT_EQ(position_range(0), 0U);
  EXPECT_EQ(position_range(1), 1U);
  EXPECT_EQ(position_range(3), 1U);
  EXPECT_EQ(position_range(4), 2U);
  EXPECT_EQ(position_range(1 << 20), kPositionRanges - 1);
  EXPECT_EQ(position_range_name(0), "0");
  EXPECT_EQ(position_range_name(2), "4–15");
  EXPECT_EQ(position_range_name(kPositionRanges - 1), "1024–");
}

TEST(ExpertReport, CountsLoadsChoicesAndPartners) {
  const ExpertReport r = small_report();
  EXPECT_EQ(r.tokens(), 6);
  EXPECT_EQ(r.load(0), (std::vector<double>{0.5, 4 / 12.0, 2 / 12.0, 0}));
  EXPECT_EQ(r.first_choice(0), (std::vector<double>{0.5, 1 / 6.0, 2 / 6.0, 0}));
  EXPECT_EQ(r.dead(0), std::vector<int64_t>{3});
  EXPECT_DOUBLE_EQ(r.together(0, 0, 1), 4 / 6.0);
  EXPECT_DOUBLE_EQ(r.together(0, 1, 0), 1);
  EXPECT_DOUBLE_EQ(r.together(0, 2, 1), 0);
  EXPECT_DOUBLE_EQ(r.together(0, 3, 1), 0);
  const double z = std::exp(3) + std::exp(2) + 2;
  const double expected = -(std::exp(3) / z * std::log(std::exp(3) / z) +
                            std::exp(2) / z * std::log(std::exp(2) / z) - 2 / z * std::log(z));
  EXPECT_NEAR(r.token_entropy(0), expected, 1e-12);
}

TEST(ExpertReport, GivesLiftsAgainstTheWholeText) {
  const ExpertReport r = small_report();
  EXPECT_DOUBLE_EQ(r.kind_lift(0, 2, TokenKind::digit), 3);  // all of its tokens; a third of all
  EXPECT_DOUBLE_EQ(r.kind_lift(0, 0, TokenKind::digit), 1);
  EXPECT_DOUBLE_EQ(r.kind_lift(0, 1, TokenKind::digit), 0);
  EXPECT_TRUE(std::isnan(r.kind_lift(0, 1, TokenKind::name))) << "there was none";
  EXPECT_TRUE(std::isnan(r.kind_lift(0, 3, TokenKind::digit))) << "it took none";
  EXPECT_DOUBLE_EQ(r.position_lift(0, 1, 0), 1.5);
  const auto typical = r.typical_tokens(0, 2, 5);
  ASSERT_EQ(typical.size(), 1U);
  EXPECT_EQ(typical[0].id, '1');
  EXPECT_EQ(typical[0].count, 2);
  EXPECT_DOUBLE_EQ(typical[0].lift, 3);
}

TEST(ExpertReport, KeepsTheFirstTokensWithTheirWeights) {
  const ExpertReport r = small_report();
  EXPECT_EQ(r.sample().ids, (std::vector<int32_t>{'a', 'b', 'c', '1'}));
  EXPECT_EQ(r.sample().expert[0], (std::vector<int32_t>{0, 1, 0, 1, 1, 0, 2, 0}));
  EXPECT_NEAR(r.sample().weight[0][0], 1 / (1 + std::exp(-1)), 1e-6);
  EXPECT_NEAR(r.sample().weight[0][0] + r.sample().weight[0][1], 1, 1e-6);
}

TEST(ExpertReport, DoesNotDependOnHowSequencesArrive) {
  const uint64_t seed = 5;
  RandomStream random(seed);
  ExpertReport forward(2, 4, 2), backward(2, 4, 2);
  struct Sequence {
    std::vector<int32_t> ids, experts;
    std::vector<double> logits;
  };
  std::vector<Sequence> sequences;
  for (int s = 0; s < 6; ++s) {
    Sequence sequence;
    std::vector<std::pair<int32_t, int32_t>> choices;
    for (uint64_t n = random.below(30) + 1; n > 0; --n) {
      sequence.ids.push_back(static_cast<int32_t>(random.below(5)));
      const auto first = static_cast<int32_t>(random.below(4));
      choices.emplace_back(first, (first + 1 + static_cast<int32_t>(random.below(3))) % 4);
    }
    sequence.logits = logits_for(choices);
    sequence.experts = chosen(choices);
    sequences.push_back(sequence);
  }
  auto add = [](ExpertReport& report, const Sequence& s) {
    const LayerRoute route{.logits = s.logits, .expert = s.experts};
    report.add(s.ids, {}, std::vector<LayerRoute>{route, route});
  };
  for (const Sequence& s : sequences) add(forward, s);
  for (auto s = sequences.rbegin(); s != sequences.rend(); ++s) add(backward, *s);
  for (int64_t l = 0; l < 2; ++l) {
    EXPECT_EQ(forward.load(l), backward.load(l)) << "seed " << seed;
    double sum = 0;
    for (const double share : forward.load(l)) sum += share;
    EXPECT_NEAR(sum, 1, 1e-12);
    for (int64_t a = 0; a < 4; ++a) {
      double partners = 0;
      for (int64_t b = 0; b < 4; ++b) partners += b == a ? 0 : forward.together(l, a, b);
      EXPECT_NEAR(partners, 1, 1e-12) << "k - 1 others, seed " << seed;
      double lift = 0;  // the lifts of all positions, weighted, are 1
      for (size_t range = 0; range < kPositionRanges; ++range)
        if (forward.count_at(range) > 0)
          lift += forward.position_lift(l, a, range) *
                  static_cast<double>(forward.count_at(range)) /
                  static_cast<double>(forward.tokens());
      EXPECT_NEAR(lift, 1, 1e-12) << "seed " << seed;
    }
  }
  EXPECT_FALSE(forward.has_kinds());
}

TEST(ExpertPage, StandsAlone) {
  const auto bytes = load_tokenizer("bytes-256");
  const std::string page =
      expert_page(small_report(), {.model = "<i>&", .data = "d", .tokenizer = bytes.get()});
  for (const char* outside : {"http:", "https:", "src=", "@import", "url(", "<link"})
    EXPECT_EQ(page.find(outside), std::string::npos) << outside;
  EXPECT_NE(page.find("<title>Experts of &lt;i&gt;&amp;</title>"), std::string::npos);
  EXPECT_NE(page.find(">dead</td>"), std::string::npos);
  EXPECT_NE(page.find("<i class=\"e2\">1</i>"), std::string::npos) << "the fourth token";
  EXPECT_NE(page.find("expert = [[0,1,0,1,1,0,2,0],]"), std::string::npos);
  EXPECT_TRUE(page.ends_with("</html>\n"));
}

TEST(ExpertPage, ShowsIdsWithoutATokenizerAndSignsForBlanks) {
  EXPECT_NE(expert_page(small_report(), {}).find("<i class=\"e0\">97</i> "), std::string::npos);
  const auto bytes = load_tokenizer("bytes-256");
  EXPECT_EQ(token_text(bytes.get(), 'x'), "x");
  EXPECT_EQ(token_text(bytes.get(), 0xC3), bytes->label(0xC3));
  EXPECT_EQ(token_text(bytes.get(), 9999), "9999");
  EXPECT_EQ(token_text(nullptr, 5), "5");
}

}  // namespace
}  // namespace mixtral
