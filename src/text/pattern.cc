#include "text/pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <array>

#include "base/error.h"
#include "io/json.h"
#include "text/unicode.h"
#include "text/utf8.h"

namespace mixtral {
namespace {

constexpr size_t kLongestExpression = 10000;
// What the patterns of real tokenizers need is at most a few steps a byte.
constexpr uint64_t kFewestSteps = 100000, kStepsPerByte = 32;
constexpr uint32_t kMatchKilobytes = 1 << 18;

struct Free {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
  void operator()(pcre2_compile_context* context) const { pcre2_compile_context_free(context); }
};

std::string message_of(int code) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

/// Where the whole characters of UTF-8 end that begin at `at`.
size_t end_of_characters(std::string_view text, size_t at) {
  while (const size_t length = utf8_length(text.substr(at))) at += length;
  return at;
}

}  // namespace

struct Pattern::Compiled {
  std::unique_ptr<pcre2_code, Free> code;
};

struct Pattern::Matches::State {
  std::unique_ptr<pcre2_match_data, Free> data;
  std::unique_ptr<pcre2_match_context, Free> context;
  size_t begin = 0, end = 0;  // of the whole characters that are looked through
};

Pattern::Pattern(std::string_view expression, std::string_view source)
    : expression_(expression), compiled_(std::make_unique<Compiled>()) {
  if (expression.size() > kLongestExpression) {
    throw Error(fmt::format("{}: the pattern has {} bytes; at most {} are accepted", source,
                            expression.size(), kLongestExpression));
  }
  const std::string translated = pcre_syntax(expression, source);
  const std::unique_ptr<pcre2_compile_context, Free> context(pcre2_compile_context_create(nullptr));
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context.get(), 100);
  int error = 0;
  PCRE2_SIZE offset = 0;
  // ^ and $ match at every line in Oniguruma's Ruby syntax.
  compiled_->code.reset(
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error,
                    &offset, context.get()));
  if (!compiled_->code) {
    throw Error(fmt::format("{}: the regex pattern \"{}\" cannot be read: {} (near its byte {})",
                            source, printable(expression), message_of(error), offset));
  }
}

Pattern::~Pattern() = default;

Pattern::Matches::Matches(const Pattern& pattern, std::string_view text)
    : pattern_(pattern), text_(text), state_(std::make_shared<State>()) {
  state_->data.reset(pcre2_match_data_create(1, nullptr));
  state_->context.reset(pcre2_match_context_create(nullptr));
  if (!state_->data || !state_->context) throw std::bad_alloc();
  state_->end = end_of_characters(text, 0);
  const uint64_t steps = kFewestSteps + kStepsPerByte * text.size();
  pcre2_set_match_limit(state_->context.get(),
                        static_cast<uint32_t>(std::min<uint64_t>(steps, UINT32_MAX)));
  pcre2_set_heap_limit(state_->context.get(), kMatchKilobytes);
}

// PCRE2 would look through all that follows for bytes that are not UTF-8, at each match. So it gets
// stretches of whole characters, each looked through once.
bool Pattern::Matches::next(size_t& begin, size_t& end) {
  while (true) {
    if (at_ > state_->end) {
      if (state_->end == text_.size()) return false;
      at_ = state_->end;
      while (at_ < text_.size() && utf8_length(text_.substr(at_)) == 0) ++at_;
      state_->begin = at_;
      state_->end = end_of_characters(text_, at_);
    }
    const size_t first = state_->begin;
    const uint32_t options = PCRE2_NO_UTF_CHECK | (first > 0 ? PCRE2_NOTBOL : 0) |
                             (state_->end < text_.size() ? PCRE2_NOTEOL : 0);
    const int found = pcre2_match(
        pattern_.compiled_->code.get(), reinterpret_cast<PCRE2_SPTR>(text_.data() + first),
        state_->end - first, at_ - first, options, state_->data.get(), state_->context.get());
    if (found == PCRE2_ERROR_NOMATCH) {
      at_ = state_->end + 1;
      continue;
    }
    if (found < 0) {
      throw Error(
          fmt::format("the tokenizer's pattern \"{}\" cannot be matched with a text of {} "
                      "bytes: {}",
                      printable(pattern_.expression_), text_.size(), message_of(found)));
    }
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(state_->data.get());
    begin = first + bounds[0];
    end = first + bounds[1];
    if (begin > end) end = begin;  // a pattern with \K in a lookahead
    if (begin == end && end == last_end_) {
      at_ = end + (end < state_->end ? first_character(text_.substr(end)).length : 1);
      continue;
    }
    at_ = last_end_ = end;
    return true;
  }
}

}  // namespace mixtral
