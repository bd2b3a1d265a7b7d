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

}  // namespace

struct Pattern::Compiled {
  std::unique_ptr<pcre2_code, Free> code;      // for text that is known to be UTF-8
  std::unique_ptr<pcre2_code, Free> tolerant;  // for any
};

struct Pattern::Matches::State {
  std::unique_ptr<pcre2_match_data, Free> data;
  std::unique_ptr<pcre2_match_context, Free> context;
  // Otherwise each match would look through the rest of the text for bytes that are not UTF-8.
  bool checked = false;
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
  const auto compile = [&](uint32_t more) {
    return pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                         PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | more,
                         &error, &offset, context.get());
  };
  compiled_->code.reset(compile(0));
  if (compiled_->code) compiled_->tolerant.reset(compile(PCRE2_MATCH_INVALID_UTF));
  if (!compiled_->tolerant) {
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
  state_->checked = is_valid_utf8(text);
  const uint64_t steps = kFewestSteps + kStepsPerByte * text.size();
  pcre2_set_match_limit(state_->context.get(),
                        static_cast<uint32_t>(std::min<uint64_t>(steps, UINT32_MAX)));
  pcre2_set_heap_limit(state_->context.get(), kMatchKilobytes);
}

bool Pattern::Matches::next(size_t& begin, size_t& end) {
  while (at_ <= text_.size()) {
    const pcre2_code* const code =
        (state_->checked ? pattern_.compiled_->code : pattern_.compiled_->tolerant).get();
    const int found = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text_.data()), text_.size(),
                                  at_, state_->checked ? PCRE2_NO_UTF_CHECK : 0, state_->data.get(),
                                  state_->context.get());
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0) {
      throw Error(
          fmt::format("the tokenizer's pattern \"{}\" cannot be matched with a text of {} "
                      "bytes: {}",
                      printable(pattern_.expression_), text_.size(), message_of(found)));
    }
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(state_->data.get());
    begin = bounds[0];
    end = bounds[1];
    if (begin > end) end = begin;  // a pattern with \K in a lookahead
    if (begin == end && end == last_end_) {
      at_ = end + (end < text_.size() ? first_character(text_.substr(end)).length : 1);
      continue;
    }
    at_ = last_end_ = end;
    return true;
  }
  at_ = text_.size() + 1;
  return false;
}

}  // namespace mixtral
