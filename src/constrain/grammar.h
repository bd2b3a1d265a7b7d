#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "io/json.h"

namespace mixtral::constrain {

class Network;

/// A language of texts in UTF-8: what an answer has to be. Immutable; copies share their contents,
/// and may be used by many threads.
class Grammar {
 public:
  explicit Grammar(std::shared_ptr<const Network> network) : network_(std::move(network)) {}
  const Network& network() const { return *network_; }
  std::shared_ptr<const Network> shared_network() const { return network_; }

  /// Whether `text` is in the language. For tests and for values that are known beforehand.
  bool accepts(std::string_view text) const;

 private:
  std::shared_ptr<const Network> network_;
};

/// How the JSON text looks that a schema allows.
struct JsonLayout {
  /// After a line break so many spaces or tabs at most. Elsewhere there is one space or none.
  int most_indent = 20;
};

// Each throws Error, one sentence, for what is malformed, what cannot be kept, and what is larger
// than the limits. Nothing is ever left unconstrained silently.

/// The JSON texts that are valid by a JSON schema (draft 2020-12, and what earlier drafts and
/// OpenAPI have in other words). Properties come in the schema's order. Where a schema lists
/// properties and says nothing of others, there are no others. An error names the schema,
/// the keyword and its path. docs/constrained-output.md lists the keywords that are kept.
Grammar compile_json_schema(const Json& schema, const JsonLayout& layout = {});
/// The same for a schema as text, whose name in errors is `source`.
Grammar compile_json_schema(std::string_view schema, std::string_view source,
                            const JsonLayout& layout = {});
/// Any JSON object.
Grammar json_object(const JsonLayout& layout = {});

/// A grammar in GBNF, the notation of llama.cpp, from its rule `root` on. Errors name the line.
Grammar compile_gbnf(std::string_view text);

/// The texts that a regular expression matches as a whole. Anchors may stand at the ends; there are
/// no look-around and no back references.
Grammar compile_regex(std::string_view expression);

}  // namespace mixtral::constrain
