// Any bytes as a line of a data file: refused with an Error, or a record that encodes to tokens
// with a label each. What fix_record() returns must be a record.
#include <cstdint>
#include <memory>
#include <string_view>

#include "base/error.h"
#include "data/corpus.h"
#include "data/record.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace mixtral;
  const std::string_view line(reinterpret_cast<const char*>(data), size);
  const RecordRules rules{.vocab_size = 300};
  const auto tokenizer = load_tokenizer("bytes");
  if (const auto fixed = fix_record(line, rules)) parse_record(*fixed, "fixed:1", rules);
  try {
    const Record record = parse_record(line, "fuzz:1", rules);
    for (const bool mask : {false, true}) {
      EncodeOptions options;
      options.mask_prompt = mask;
      try {
        Corpus corpus;
        for (const Example& example : encode_record(record, tokenizer.get(), options, "fuzz:1")) {
          CHECK(!example.tokens.empty() && example.tokens.size() == example.labels.size());
          corpus.add(example);
        }
        CHECK(corpus.documents() == (is_preference(record.kind) ? 2 : 1));
      } catch (const Error&) {
        continue;  // a text without the response marker
      }
    }
  } catch (const Error&) {
    return 0;  // refused
  }
  return 0;
}
