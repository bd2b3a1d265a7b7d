#include <fmt/format.h>

#include "serve/front_ends.h"
#include "serve/model_route.h"
#include "serve/openai_fields.h"
#include "serve/openai_json.h"
#include "text/utf8.h"

namespace mixtral::serve {
namespace {

void tokenize(Service& service, const Json& body, const HttpHead& /*head*/,
              const std::shared_ptr<Reply>& reply) {
  Fields fields(body);
  (void)service.model(fields.text("model").value_or(""));
  const auto content = fields.text("content"), prompt = fields.text("prompt");
  if (content && prompt) throw bad_field("prompt", "is given beside content; give one of them");
  if (!content && !prompt) throw bad_field("content", "is missing; expected a text");
  const bool special = fields.boolean("add_special").value_or(false);
  const bool spelled = fields.boolean("parse_special").value_or(true);
  fields.finish();
  const std::string& text = content ? *content : *prompt;
  const Tokenizer& tokenizer = service.tokenizer();
  std::vector<int32_t> ids;
  if (special && spelled) {
    ids = completion_tokens(tokenizer, text);
  } else {
    ids = spelled ? tokenizer.encode_prompt(text) : tokenizer.encode(text);
    if (special && tokenizer.bos_id() >= 0) ids.insert(ids.begin(), tokenizer.bos_id());
  }
  reply->send(json_response({{"tokens", ids}, {"count", ids.size()}}));
}

void detokenize(Service& service, const Json& body, const HttpHead& /*head*/,
                const std::shared_ptr<Reply>& reply) {
  Fields fields(body);
  (void)service.model(fields.text("model").value_or(""));
  const Json& tokens = fields.need("tokens");
  if (!tokens.is_array()) throw bad_field("tokens", "expected a list of token ids");
  std::vector<int32_t> ids;
  const int32_t count = service.tokenizer().vocab_size();
  for (const Json& item : tokens.items()) {
    if (!item.is_integer() || item.as_int() < 0 || item.as_int() >= count)
      throw bad_field("tokens", fmt::format("expected token ids from 0 to {}", count - 1));
    ids.push_back(static_cast<int32_t>(item.as_int()));
  }
  fields.finish();
  reply->send(json_response({{"content", to_valid_utf8(service.tokenizer().decode(ids))}}));
}

void apply_template(Service& service, const Json& body, const HttpHead& /*head*/,
                    const std::shared_ptr<Reply>& reply) {
  Fields fields(body);
  ChatRequest request;
  request.model = fields.text("model").value_or("");
  (void)service.model(request.model);
  read_conversation(fields, request);
  fields.finish();
  reply->send(json_response({{"prompt", service.format().prompt_text(request)}}));
}

}  // namespace

void add_text_routes(Router& router, Models& models) {
  add_model_route(router, models, "/v1/tokenize", tokenize);
  add_model_route(router, models, "/v1/detokenize", detokenize);
  add_model_route(router, models, "/v1/apply-template", apply_template);
}

}  // namespace mixtral::serve
