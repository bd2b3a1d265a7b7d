#include "text/byte_tokenizer.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "io/json.h"
#include "text/added_tokens.h"

namespace mixtral {

ByteTokenizer::ByteTokenizer(Specials specials) {
  if (specials == Specials::bos_eos) {
    special_.bos = 256;
    special_.eos = 257;
  }
}

std::unique_ptr<ByteTokenizer> ByteTokenizer::load(const std::filesystem::path& file) {
  const Json json = Json::load(file, {.bytes = 4096, .depth = 4});
  const Json* kind = json.find("kind");
  if (kind == nullptr || !kind->is_string() || kind->as_string() != "bytes") {
    throw Error(
        fmt::format("{}: expected a byte tokenizer with \"kind\": \"bytes\"; for a "
                    "SentencePiece tokenizer give its .model file",
                    file.string()));
  }
  const Json &bos = json.at("bos_id"), &eos = json.at("eos_id");
  if (bos.is_null() && eos.is_null()) return std::make_unique<ByteTokenizer>(Specials::none);
  if (bos.as_int() != 256 || eos.as_int() != 257) {
    throw Error(fmt::format("{}: bos_id and eos_id are {} and {}, expected 256 and 257, or null",
                            file.string(), bos.as_int(), eos.as_int()));
  }
  return std::make_unique<ByteTokenizer>();
}

std::vector<int32_t> ByteTokenizer::encode(std::string_view text) const {
  std::vector<int32_t> ids(text.size());
  for (size_t i = 0; i < text.size(); ++i) ids[i] = static_cast<unsigned char>(text[i]);
  return ids;
}

std::vector<int32_t> ByteTokenizer::encode_prompt(std::string_view text) const {
  TokenFinder finder;
  for (const std::string& control : control_texts())
    finder.add(control, {.id = find(control), .content = control, .special = true});
  std::vector<int32_t> ids;
  for (const Segment& part : finder.split(text)) {
    if (part.id >= 0) {
      ids.push_back(part.id);
      continue;
    }
    for (const char c : part.text) ids.push_back(static_cast<unsigned char>(c));
  }
  return ids;
}

void ByteTokenizer::decode_next(int32_t id, bool& at_start, std::string& text) const {
  check_id(id);
  if (id >= 256) return;
  at_start = false;
  text += static_cast<char>(id);
}

std::string ByteTokenizer::label(int32_t id) const {
  check_id(id);
  if (id == special_.bos) return "<s>";
  if (id == special_.eos) return "</s>";
  return id > 0x20 && id < 0x7F ? std::string(1, static_cast<char>(id))
                                : fmt::format("<0x{:02X}>", id);
}

bool ByteTokenizer::is_control(int32_t id) const { return id >= 256 && id < vocab_size(); }

int32_t ByteTokenizer::find(std::string_view text) const {
  for (int32_t id = 0; id < vocab_size(); ++id)
    if (label(id) == text) return id;
  return -1;
}

std::vector<std::string> ByteTokenizer::control_texts() const {
  if (special_.bos < 0) return {};
  return {label(special_.bos), label(special_.eos)};
}

std::string ByteTokenizer::description() const {
  return special_.bos < 0 ? "256 bytes, no special tokens" : "256 bytes, BOS 256, EOS 257";
}

void ByteTokenizer::save(const std::filesystem::path& directory) const {
  nlohmann::ordered_json json{{"kind", "bytes"}, {"bos_id", nullptr}, {"eos_id", nullptr}};
  if (special_.bos >= 0) {
    json["bos_id"] = special_.bos;
    json["eos_id"] = special_.eos;
  }
  write_file(directory / kByteTokenizerFile, json.dump(2) + "\n");
}

}  // namespace mixtral
