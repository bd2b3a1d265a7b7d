#include "stories/teller.h"

#include <algorithm>
#include <cctype>
#include <utility>

#include "base/error.h"

namespace mixtral::stories {
namespace {

/// Materials stand after the colour ("red woollen scarf"), other qualities before it ("little red
/// kite").
bool is_material(std::string_view quality) {
  constexpr std::string_view kMaterials[] = {
      "wooden", "woollen", "paper", "tin",  "glass",  "silk",    "velvet", "straw",  "rubber",
      "china",  "clay",    "cloth", "iron", "willow", "fishing", "rag",    "knitted"};
  return std::find(std::begin(kMaterials), std::end(kMaterials), quality) != std::end(kMaterials);
}

/// The word that a pattern begins with ("Then"), empty where it begins with a key or a choice.
std::string_view opening(std::string_view pattern) {
  size_t end = 0;
  while (end < pattern.size() && std::isalpha(static_cast<unsigned char>(pattern[end]))) ++end;
  return pattern.substr(0, end);
}

size_t closing_bracket(std::string_view text, size_t open) {
  int depth = 0;
  for (size_t i = open; i < text.size(); ++i) {
    depth += text[i] == '[' ? 1 : text[i] == ']' ? -1 : 0;
    if (depth == 0) return i;
  }
  CHECK(false, "unbalanced [ in: " + std::string(text));
  return text.size();
}

}  // namespace

size_t Teller::slot(char key) {
  const char lower = static_cast<char>(std::tolower(static_cast<unsigned char>(key)));
  CHECK(lower >= 'a' && lower <= 'z');
  return static_cast<size_t>(lower - 'a');
}

Teller::Mention& Teller::mention(int b) {
  if (beings_.size() <= static_cast<size_t>(b)) beings_.resize(static_cast<size_t>(b) + 1);
  return beings_[static_cast<size_t>(b)];
}

int& Teller::thing_mention(int x) {
  if (things_.size() <= static_cast<size_t>(x)) things_.resize(static_cast<size_t>(x) + 1, -100);
  return things_[static_cast<size_t>(x)];
}

void Teller::say(std::string_view pattern) {
  if (!text_.empty() && text_.back() != '\n') text_ += ' ';
  if (quote_ended_sentence_) end_sentence();
  capital_ = true;
  last_opening_ = opening(pattern);
  expand(pattern);
  CHECK(!quote_, "direct speech is not closed in: " + std::string(pattern));
}

void Teller::say(std::initializer_list<std::string_view> patterns) {
  std::vector<std::string_view> fresh;
  for (auto pattern : patterns) {
    const bool used = std::find(used_.begin(), used_.end(), pattern.data()) != used_.end();
    const bool same = !last_opening_.empty() && opening(pattern) == last_opening_;
    if (!used && !same) fresh.push_back(pattern);
  }
  if (fresh.empty()) fresh.assign(patterns.begin(), patterns.end());
  const std::string_view chosen = fresh[static_cast<size_t>(pick(static_cast<int>(fresh.size())))];
  used_.push_back(chosen.data());
  say(chosen);
}

void Teller::paragraph() {
  while (!text_.empty() && text_.back() == ' ') text_.pop_back();
  if (text_.empty() || text_.back() == '\n') return;
  end_sentence();
  text_ += "\n\n";
  paragraph_start_ = sentence_;
}

void Teller::introduce(int b) { mention(b).introduced = true; }

bool Teller::recent(int b) const {
  return static_cast<size_t>(b) < beings_.size() &&
         beings_[static_cast<size_t>(b)].sentence >= std::max(paragraph_start_, sentence_ - 2);
}

std::string Teller::text() const {
  std::string result = text_;
  while (!result.empty() && (result.back() == ' ' || result.back() == '\n')) result.pop_back();
  return result;
}

int Teller::words() const {
  int count = 0;
  bool inside = false;
  for (char c : text_) {
    const bool space = c == ' ' || c == '\n';
    count += !space && !inside;
    inside = !space;
  }
  return count;
}

void Teller::end_sentence() {
  ++sentence_;
  quote_ended_sentence_ = false;
}

void Teller::expand(std::string_view pattern) {
  for (size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] == '[') {
      const size_t close = closing_bracket(pattern, i);
      const std::string_view body = pattern.substr(i + 1, close - i - 1);
      std::vector<std::string_view> alternatives;
      size_t begin = 0;
      int depth = 0;
      for (size_t j = 0; j <= body.size(); ++j) {
        if (j == body.size() || (body[j] == '|' && depth == 0)) {
          alternatives.push_back(body.substr(begin, j - begin));
          begin = j + 1;
        } else {
          depth += body[j] == '[' ? 1 : body[j] == ']' ? -1 : 0;
        }
      }
      expand(alternatives[static_cast<size_t>(pick(static_cast<int>(alternatives.size())))]);
      i = close;
    } else if (pattern[i] == '{') {
      const size_t close = pattern.find('}', i);
      CHECK(close != std::string_view::npos, "unbalanced { in: " + std::string(pattern));
      reference(pattern.substr(i + 1, close - i - 1));
      i = close;
    } else {
      emit(pattern.substr(i, 1));
    }
  }
}

void Teller::emit(std::string_view text) {
  for (char c : text) {
    if (c == ' ') {
      if (!text_.empty() && text_.back() != ' ' && text_.back() != '\n') text_ += ' ';
      continue;
    }
    if (c == '`') {
      if (quote_) {
        const char last = text_.empty() ? ' ' : text_.back();
        quote_ended_sentence_ = last == '.' || last == '!' || last == '?';
        capital_ = false;
      } else {
        // After a comma the pattern itself says whether speech begins or goes on: Mia said, "Come",
        // but "Yes," said Mia, "but not today."
        const size_t last = text_.find_last_not_of(' ');
        capital_ = last == std::string::npos || text_[last] != ',';
      }
      quote_ = !quote_;
      text_ += '"';
      continue;
    }
    const bool stop = c == '.' || c == '!' || c == '?';
    if (stop || c == ',') {
      while (!text_.empty() && text_.back() == ' ') text_.pop_back();
    }
    if (std::isalnum(static_cast<unsigned char>(c))) {
      if (capital_) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
      if (quote_ended_sentence_ && std::isupper(static_cast<unsigned char>(c))) end_sentence();
      capital_ = quote_ended_sentence_ = false;
    }
    text_ += c;
    if (stop) {
      capital_ = true;
      if (!quote_) end_sentence();
    }
  }
}

void Teller::reference(std::string_view body) {
  CHECK(!body.empty());
  const char key = body[0];
  const std::string_view form = body.size() > 2 ? body.substr(2) : std::string_view();
  if (std::isupper(static_cast<unsigned char>(key))) {
    capital_ = true;
    if (quote_ended_sentence_) end_sentence();
  }
  const Ref& ref = keys_[slot(key)];
  const size_t begin = text_.size();
  resolve(ref, body, form);
  // "a" that the pattern wrote becomes "an" before a vowel: a {k}.
  if (begin >= 2 && begin < text_.size() && text_[begin - 1] == ' ' &&
      (text_[begin - 2] == 'a' || text_[begin - 2] == 'A') &&
      (begin == 2 || !std::isalpha(static_cast<unsigned char>(text_[begin - 3]))) &&
      article(std::string_view(text_).substr(begin)) == "an") {
    text_.insert(begin - 1, 1, 'n');
  }
}

void Teller::resolve(const Ref& ref, std::string_view body, std::string_view form) {
  switch (ref.kind) {
    case Ref::Kind::being:
      return refer_to_being(ref.index, form);
    case Ref::Kind::thing:
      return refer_to_thing(ref.index, form);
    case Ref::Kind::place: {
      const PlaceKind& place = world_.place(ref.index);
      return emit(form == "in" ? place.in : form == "to" ? place.to : place.name);
    }
    case Ref::Kind::text:
      return emit(std::string(ref.text));
    case Ref::Kind::none:
      break;
  }
  CHECK(false, "nothing is bound to {" + std::string(body) + "}");
}

bool Teller::pronoun_is_clear(int b) const {
  if (static_cast<size_t>(b) >= beings_.size()) return false;
  const Mention& mine = beings_[static_cast<size_t>(b)];
  const int since = std::max(sentence_ - 1, paragraph_start_);
  if (mine.sentence < since || sentence_ - mine.named > 3) return false;
  const Gender gender = world_.being(b).gender;
  if (gender == Gender::neuter && last_thing_ >= since) return false;
  for (size_t o = 0; o < beings_.size(); ++o) {
    if (static_cast<int>(o) == b || world_.beings[o].gender != gender) continue;
    if (beings_[o].sentence >= since) return false;
  }
  return true;
}

std::string Teller::name_of(int b) {
  const Being& being = world_.being(b);
  if (!being.name.empty()) return being.name;
  if (being.kin_of >= 0 && quote_) return capitalized(being.noun);  // "Ask Mother."
  if (being.kin_of >= 0) return possessor(being.kin_of) + " " + being.noun;
  return "the " + being.noun;
}

/// "her" where that is clear, else "Mia's"; "my" in direct speech.
std::string Teller::possessor(int b) {
  if (quote_) return "my";
  if (pronoun_is_clear(b)) {
    mention(b).sentence = sentence_;
    return std::string(pronoun_possessive(world_.being(b).gender));
  }
  Mention& m = mention(b);
  m.sentence = m.named = sentence_;
  return possessive(name_of(b));
}

void Teller::refer_to_being(int b, std::string_view form) {
  const Being& being = world_.being(b);
  mention(b);  // so that the table is large enough for the checks below
  std::string said;
  bool by_name = false;
  if (form == "he") {
    said = pronoun_subject(being.gender);
  } else if (form == "him") {
    said = pronoun_object(being.gender);
  } else if (form == "his") {
    said = pronoun_possessive(being.gender);
  } else if (form == "self") {
    said = pronoun_reflexive(being.gender);
  } else if (form == "i" ||
             (!mention(b).introduced && !(quote_ && (!being.name.empty() || being.kin_of >= 0)))) {
    if (being.kin_of >= 0) said = possessor(being.kin_of) + " ";
    said += being.intro;
    if (form == "s") said = possessive(said);
    mention(b).introduced = true;
    by_name = true;
  } else if (form != "n" && !quote_ && pronoun_is_clear(b)) {
    said = form == "o"   ? pronoun_object(being.gender)
           : form == "s" ? pronoun_possessive(being.gender)
                         : pronoun_subject(being.gender);
  } else {
    said = name_of(b);
    if (form == "s") said = possessive(said);
    by_name = true;
  }
  Mention& m = mention(b);
  m.sentence = sentence_;
  if (by_name) m.named = sentence_;
  emit(said);
}

std::string Teller::phrase(int x) const {
  const Thing& thing = world_.thing(x);
  std::vector<std::string> words;
  if (!thing.colour.empty()) words.push_back(thing.colour);
  if (!thing.quality.empty()) {
    words.insert(is_material(thing.quality) ? words.end() : words.begin(), thing.quality);
  }
  std::string result;
  for (const auto& word : words) result += word + " ";
  return result.append(world_.kind(x).noun);
}

std::string Teller::short_phrase(int x) const {
  for (size_t o = 0; o < world_.things.size(); ++o) {
    if (static_cast<int>(o) == x || world_.things[o].kind != world_.thing(x).kind) continue;
    return phrase(x);  // there is another kite, so say which
  }
  return std::string(world_.kind(x).noun);
}

void Teller::refer_to_thing(int x, std::string_view form) {
  const Thing& thing = world_.thing(x);
  const bool many = world_.kind(x).plural;
  int& last = thing_mention(x);
  const bool fresh = last < 0 || sentence_ - last > 5;
  std::string said;
  if (form == "it") {
    said = many ? "they" : "it";
  } else if (form == "them") {
    said = many ? "them" : "it";
  } else if (form == "was") {
    said = many ? "were" : "was";
  } else if (form == "is") {
    said = many ? "are" : "is";
  } else if (form == "has") {
    said = many ? "have" : "has";
  } else if (form == "a") {
    said = many ? "a pair of " + phrase(x) : with_article(phrase(x));
  } else if (form == "n") {
    said = phrase(x);
  } else if (form == "k") {
    said = short_phrase(x);
  } else if (form == "own" || form == "full") {
    said = (thing.owner >= 0 ? possessor(thing.owner) : std::string("the")) + " " +
           (form == "full" ? phrase(x) : short_phrase(x));
  } else {
    CHECK(form.empty(), "a thing has no form " + std::string(form));
    said = "the " + (fresh ? phrase(x) : short_phrase(x));
  }
  last = last_thing_ = sentence_;
  emit(said);
}

}  // namespace mixtral::stories
