#include "eval/expert_page.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>

#include "eval/html.h"
#include "text/utf8.h"

namespace mixtral {
namespace {

constexpr size_t kTypicalTokens = 14;
// A cell says nothing where so few tokens are all that there is of a kind.
constexpr int64_t kFewTokens = 20;

constexpr std::string_view kStyle = R"(
:root { color-scheme: light dark; --ink: #1d2127; --soft: #626a76; --line: #d9dce2;
  --page: #fbfbfc; --box: #fff; --high: 206 84 0; --low: 0 96 178; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ec; --soft: #9aa3b1; --line: #3a404a;
  --page: #16181c; --box: #1e2126; --high: 240 128 48; --low: 72 156 236; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 28px 24px 60px; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
h1 { font-size: 25px; margin: 0 0 2px; } h2 { font-size: 18px; margin: 34px 0 4px; }
h3 { font-size: 15px; margin: 26px 0 4px; }
p { margin: 4px 0 10px; max-width: 76ch; } .soft { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: separate; border-spacing: 2px; font-variant-numeric: tabular-nums;
  font-size: 13px; }
th { font-weight: 500; color: var(--soft); padding: 3px 8px; text-align: right;
  white-space: nowrap; }
thead th { text-align: center; } tbody th { text-align: right; }
td { padding: 4px 6px; min-width: 58px; text-align: center; border-radius: 3px;
  white-space: nowrap; }
td.plain { color: var(--soft); } td.few { color: var(--soft); } td.dead { font-weight: 700; }
td.words { text-align: left; white-space: normal; line-height: 1.9; }
.token { border: 1px solid var(--line); border-radius: 3px; background: var(--box);
  padding: 0 5px; margin-right: 2px; font: 12.5px ui-monospace, "DejaVu Sans Mono", monospace;
  white-space: pre; }
.scale { display: inline-flex; vertical-align: middle; border-radius: 3px; overflow: hidden; }
.scale span { padding: 1px 9px; font-size: 12px; }
nav { position: sticky; top: 0; background: var(--page); padding: 10px 0; z-index: 1;
  border-bottom: 1px solid var(--line); display: flex; flex-wrap: wrap; gap: 4px; }
button { font: inherit; font-size: 13px; color: var(--ink); background: var(--box);
  border: 1px solid var(--line); border-radius: 4px; padding: 3px 10px; cursor: pointer; }
button[aria-pressed=true] { background: var(--ink); color: var(--page); border-color: var(--ink); }
#text { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--box);
  border: 1px solid var(--line); border-radius: 6px; padding: 14px 16px;
  font: 14px/1.75 ui-monospace, "DejaVu Sans Mono", monospace; }
#text i { font-style: normal; border-radius: 2px; padding: 2px 0; }
#text .cut { display: block; border-top: 1px dashed var(--line); margin: 8px 0; }
#text.one i:not(.chosen) { background: none; color: var(--soft); opacity: .6; }
#key { display: flex; flex-wrap: wrap; gap: 4px; margin: 6px 0 10px; }
h1, h2, h3, p { overflow-wrap: anywhere; }
.scroll th:first-child { position: sticky; left: 0; background: var(--page); }
@media (max-width: 560px) {
  body { padding: 16px 12px 40px; } h1 { font-size: 20px; }
  nav { max-height: 30vh; overflow-y: auto; }
  table { font-size: 12px; } td { min-width: 46px; padding: 3px 4px; } th { padding: 3px 5px; }
  .scale span { padding: 1px 5px; } .token { white-space: pre-wrap; overflow-wrap: anywhere; }
  td.words { min-width: 0; }
}
)";

constexpr std::string_view kScript = R"(
const spans = document.querySelectorAll('#text i'), text = document.getElementById('text');
let layer = 0, only = -1;
function paint() {
  spans.forEach((s, i) => {
    const all = expert[layer].slice(i * k, i * k + k), w = weight[layer];
    s.className = 'e' + all[0] + (all.includes(only) ? ' chosen' : '');
    s.title = all.map((e, j) => 'expert ' + e + ': ' + w[i * k + j] + '%').join(', ');
  });
  text.classList.toggle('one', only >= 0);
  document.querySelectorAll('#key button').forEach((b, e) => b.ariaPressed = e === only);
}
function show(l) {
  layer = l;
  document.querySelectorAll('section.layer').forEach((s, i) => s.hidden = i !== l);
  document.querySelectorAll('nav button').forEach((b, i) => b.ariaPressed = i === l);
  document.querySelectorAll('.current').forEach(s => s.textContent = l);
  paint();
}
document.querySelectorAll('nav button').forEach((b, i) => b.onclick = () => show(i));
document.querySelectorAll('#key button').forEach(
  (b, e) => b.onclick = () => { only = only === e ? -1 : e; paint(); });
const asked = Number(location.hash.replace('#layer-', ''));
show(Number.isInteger(asked) && asked < expert.length ? asked : 0);
)";

/// The style of a cell that is `ratio` times what it would be if nothing mattered: orange above,
/// blue below, in steps of the logarithm up to four times.
std::string shade(double ratio) {
  if (!std::isfinite(ratio)) return "";
  const double depth = ratio > 0 ? std::clamp(std::log2(ratio) / 2, -1.0, 1.0) : -1;
  return fmt::format("background:rgb(var(--{})/{:.2f})", depth > 0 ? "high" : "low",
                     0.72 * std::abs(depth));
}

std::string cell(const std::string& text, double ratio, std::string_view hint = "") {
  return fmt::format("<td style=\"{}\"{}>{}</td>", shade(ratio),
                     hint.empty() ? "" : fmt::format(" title=\"{}\"", hint), text);
}

std::string times(double ratio) {
  if (ratio > 0 && ratio < 0.005) return "<0.01×";
  return fmt::format("{:.{}f}×", ratio, ratio == 0 || ratio >= 10 ? 0 : ratio < 0.095 ? 2 : 1);
}

std::string plain(const std::string& text) {
  return fmt::format("<td class=\"plain\">{}</td>", text);
}

std::string percent(double share) { return fmt::format("{:.1f}%", 100 * share); }

class Page {
 public:
  Page(const ExpertReport& report, const ExpertPageText& text) : r_(report), text_(text) {}

  std::string draw() {
    head();
    load();
    if (!r_.sample().ids.empty() || r_.layers() > 1) navigation();
    for (int64_t l = 0; l < r_.layers(); ++l) layer(l);
    sample();
    script();
    html_ += "</body>\n</html>\n";
    return std::move(html_);
  }

 private:
  double even() const { return 1 / static_cast<double>(r_.experts()); }

  void head() {
    const std::string model = html_escaped(text_.model);
    html_ += fmt::format(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; "
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n"
        "<meta name=\"viewport\" content=\"width=device-width\">\n"
        "<title>Experts of {}</title>\n<style>{}",
        model, kStyle);
    for (int64_t e = 0; e < r_.experts(); ++e)
      html_ += fmt::format(".e{} {{ background: hsl({:.0f} 85% {}% / .42); }}\n", e,
                           360.0 * static_cast<double>(e) * even(), e % 2 == 0 ? 50 : 42);
    html_ += "</style>\n</head>\n<body>\n";
    html_ += fmt::format(
        "<h1>Experts of {}</h1>\n<p class=\"soft\">{} tokens of {} · {} layers of {} experts, {} "
        "for each token</p>\n<p>Colours compare with a router that chooses uniformly: "
        "<span class=\"scale\">",
        model, r_.tokens(), html_escaped(text_.data), r_.layers(), r_.experts(),
        r_.experts_per_token());
    for (const auto& [ratio, label] : {std::pair{0.25, "¼× or less"},
                                       {0.5, "½×"},
                                       {1.0, "1×"},
                                       {2.0, "2×"},
                                       {4.0, "4× or more"}})
      html_ += fmt::format("<span style=\"{}\">{}</span>", shade(ratio), label);
    html_ += "</span></p>\n";
  }

  void expert_headings() {
    for (int64_t e = 0; e < r_.experts(); ++e) html_ += fmt::format("<th>{}</th>", e);
  }

  void load() {
    const double most = r_.experts() > 1 ? std::log(static_cast<double>(r_.experts())) : 1;
    html_ += fmt::format(
        "<h2>Load</h2>\n<p>Each expert's share of its layer's assignments; an even split is {}. "
        "The entropy of the load is 100% when it is even. That of a token's choice is the mean "
        "over tokens of the entropy of the router's probabilities: 100% means that the router "
        "chooses uniformly, 0% that it is certain.</p>\n<div "
        "class=\"scroll\"><table>\n<thead><tr><th>"
        "expert</th>",
        percent(even()));
    expert_headings();
    html_ += "<th>load entropy</th><th>choice entropy</th><th>dead</th></tr></thead>\n<tbody>\n";
    for (int64_t l = 0; l < r_.layers(); ++l) {
      html_ += fmt::format("<tr><th>layer {}</th>", l);
      for (const double share : r_.load(l))
        html_ += share > 0 ? cell(percent(share), share / even())
                           : fmt::format("<td class=\"dead\" style=\"{}\">dead</td>", shade(0));
      html_ += plain(fmt::format("{:.1f}%", 100 * r_.load_entropy(l) / most)) +
               plain(fmt::format("{:.1f}%", 100 * r_.token_entropy(l) / most)) +
               plain(fmt::format("{}", r_.dead(l).size())) + "</tr>\n";
    }
    html_ += "</tbody>\n</table></div>\n";
  }

  void navigation() {
    html_ += "<h2>Layer by layer</h2>\n<nav>\n";
    for (int64_t l = 0; l < r_.layers(); ++l)
      html_ += fmt::format("<button type=\"button\" aria-pressed=\"{}\">layer {}</button>\n",
                           l == 0 ? "true" : "false", l);
    html_ += "</nav>\n";
  }

  /// A table of lifts with a row for each thing that `name` names and `count` tokens have.
  template <class Name, class Count, class Lift>
  void lifts(std::string_view corner, size_t rows, const Name& name, const Count& count,
             const Lift& lift) {
    html_ += fmt::format("<div class=\"scroll\"><table>\n<thead><tr><th>{}</th>", corner);
    expert_headings();
    html_ += "<th>of all tokens</th></tr></thead>\n<tbody>\n";
    for (size_t row = 0; row < rows; ++row) {
      if (count(row) == 0) continue;
      html_ += fmt::format("<tr><th>{}</th>", name(row));
      for (int64_t e = 0; e < r_.experts(); ++e) {
        const double value = lift(e, row);
        if (!std::isfinite(value) || count(row) < kFewTokens)
          html_ += "<td class=\"few\">·</td>";
        else
          html_ += cell(html_escaped(times(value)), value);
      }
      const double share = static_cast<double>(count(row)) / static_cast<double>(r_.tokens());
      html_ += plain(share < 0.0005 ? fmt::format("{} tokens", count(row)) : percent(share));
      html_ += "</tr>\n";
    }
    html_ += "</tbody>\n</table></div>\n";
  }

  void layer(int64_t l) {
    html_ += fmt::format("<section class=\"layer\"{}>\n", l == 0 ? "" : " hidden");
    if (r_.has_kinds()) {
      html_ +=
          "<h3>Kinds of token</h3>\n<p>How much more often than in the whole text an expert's "
          "tokens are of a kind. A dot: too few tokens to say.</p>\n";
      lifts(
          "expert", kTokenKinds, [](size_t i) { return kind_name(static_cast<TokenKind>(i)); },
          [&](size_t i) { return r_.count(static_cast<TokenKind>(i)); },
          [&](int64_t e, size_t i) { return r_.kind_lift(l, e, static_cast<TokenKind>(i)); });
    }
    html_ +=
        "<h3>Positions</h3>\n<p>The same for where a token stands in its sequence; 0 is the "
        "first.</p>\n";
    lifts(
        "position", kPositionRanges, position_range_name, [&](size_t i) { return r_.count_at(i); },
        [&](int64_t e, size_t i) { return r_.position_lift(l, e, i); });
    together(l);
    typical(l);
    html_ += "</section>\n";
  }

  void together(int64_t l) {
    if (r_.experts_per_token() < 2 || r_.experts() < 2) return;
    const double expected =
        static_cast<double>(r_.experts_per_token() - 1) / static_cast<double>(r_.experts() - 1);
    html_ += fmt::format(
        "<h3>Chosen together</h3>\n<p>Of the tokens that the expert on the left took, the share "
        "that the expert above took as well; {} if chance decided.</p>\n"
        "<div class=\"scroll\"><table>\n<thead><tr><th>expert</th>",
        percent(expected));
    expert_headings();
    html_ += "</tr></thead>\n<tbody>\n";
    const auto load = r_.load(l);
    for (int64_t a = 0; a < r_.experts(); ++a) {
      html_ += fmt::format("<tr><th>{}</th>", a);
      for (int64_t b = 0; b < r_.experts(); ++b) {
        if (a == b || load[static_cast<size_t>(a)] == 0) {
          html_ += "<td class=\"few\">·</td>";
          continue;
        }
        const double share = r_.together(l, a, b);
        html_ += cell(fmt::format("{:.0f}%", 100 * share), share / expected);
      }
      html_ += "</tr>\n";
    }
    html_ += "</tbody>\n</table></div>\n";
  }

  void typical(int64_t l) {
    html_ +=
        "<h3>Typical tokens</h3>\n<p>Tokens that an expert takes more often than the others do, "
        "those that tell most first.</p>\n<div class=\"scroll\"><table>\n<tbody>\n";
    for (int64_t e = 0; e < r_.experts(); ++e) {
      html_ += fmt::format("<tr><th>expert {}</th><td class=\"words\">", e);
      for (const auto& token : r_.typical_tokens(l, e, kTypicalTokens))
        html_ += fmt::format(
            "<span class=\"token\" title=\"{} times, {} as often as elsewhere\">"
            "{}</span> ",
            token.count, times(token.lift), visible(token.id));
      html_ += "</td></tr>\n";
    }
    html_ += "</tbody>\n</table></div>\n";
  }

  /// A token on its own: blanks are drawn as signs.
  std::string visible(int32_t id) const {
    std::string result;
    for (const char c : token_text(text_.tokenizer, id)) {
      if (c == ' ') {
        result += "␣";
      } else if (c == '\n') {
        result += "↵";
      } else if (c == '\t') {
        result += "⇥";
      } else {
        result += c;
      }
    }
    return html_escaped(result);
  }

  void sample() {
    const auto& s = r_.sample();
    if (s.ids.empty()) return;
    html_ +=
        "<h2>Example</h2>\n<p>The first tokens, each in the colour of the expert of layer "
        "<span class=\"current\">0</span> with the greatest weight in it. Point at a token for all "
        "of its experts; press an expert for all of its tokens.</p>\n<div id=\"key\">\n";
    for (int64_t e = 0; e < r_.experts(); ++e)
      html_ += fmt::format(
          "<button type=\"button\" aria-pressed=\"false\"><span class=\"e{0}\">&nbsp;&nbsp;&nbsp;"
          "</span> expert {0}</button>\n",
          e);
    html_ += "</div>\n<div id=\"text\">";
    const auto k = static_cast<size_t>(r_.experts_per_token());
    for (size_t n = 0; n < s.ids.size(); ++n) {
      if (s.starts[n] && n > 0) html_ += "<span class=\"cut\"></span>";
      std::string text = html_escaped(token_text(text_.tokenizer, s.ids[n]));
      if (const size_t line_end = text.find('\n'); line_end != std::string::npos)
        text.insert(line_end, "↵");
      html_ += fmt::format("<i class=\"e{}\">{}</i>", s.expert[0][n * k], text);
      if (!text_.tokenizer) html_ += ' ';
    }
    html_ += "</div>\n";
  }

  void script() {
    const auto& s = r_.sample();
    html_ += fmt::format("<script>\nconst k = {}, expert = [", r_.experts_per_token());
    for (const auto& layer : s.expert) html_ += fmt::format("[{}],", fmt::join(layer, ","));
    html_ += "], weight = [";
    for (const auto& layer : s.weight) {
      html_ += '[';
      for (const float weight : layer) html_ += fmt::format("{:.0f},", 100 * weight);
      html_ += "],";
    }
    html_ += fmt::format("];{}</script>\n", kScript);
  }

  const ExpertReport& r_;
  const ExpertPageText& text_;
  std::string html_;
};

}  // namespace

std::string token_text(const Tokenizer* tokenizer, int32_t id) {
  if (!tokenizer || id < 0 || id >= tokenizer->vocab_size()) return std::to_string(id);
  if (tokenizer->is_control(id)) return tokenizer->label(id);
  const std::string piece = tokenizer->piece(id);
  return !piece.empty() && is_valid_utf8(piece) ? piece : tokenizer->label(id);
}

std::string expert_page(const ExpertReport& report, const ExpertPageText& text) {
  return Page(report, text).draw();
}

}  // namespace mixtral
