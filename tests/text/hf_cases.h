#pragma once

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "text/byte_level.h"

namespace mixtral {

/// A small tokenizer.json, whose fields a test can change.
inline nlohmann::ordered_json hf_tokenizer(const std::vector<std::string>& pieces,
                                           const std::vector<std::string>& merges) {
  nlohmann::ordered_json vocabulary = nlohmann::ordered_json::object();
  for (const std::string& piece : pieces) vocabulary[piece] = vocabulary.size();
  return {{"version", "1.0"},
          {"added_tokens", nlohmann::ordered_json::array()},
          {"normalizer", nullptr},
          {"pre_tokenizer", nullptr},
          {"post_processor", nullptr},
          {"decoder", nullptr},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"byte_fallback", false},
            {"fuse_unk", false},
            {"vocab", vocabulary},
            {"merges", merges}}}};
}

inline nlohmann::ordered_json hf_added(int id, std::string_view content, bool special = true) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", special}};
}

/// A byte-level tokenizer: 256 bytes, "he", "ll" and " w", and <|bos|> and <|turn|>.
inline nlohmann::ordered_json byte_level_tokenizer() {
  std::vector<std::string> pieces;
  for (int byte = 0; byte < 256; ++byte)
    pieces.emplace_back(ByteLevelAlphabet::get().character(static_cast<unsigned char>(byte)));
  for (const char* piece : {"he", "ll", "\u0120w"}) pieces.emplace_back(piece);
  auto json = hf_tokenizer(pieces, {"h e", "l l", "\u0120 w"});
  json["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
  json["decoder"] = {{"type", "ByteLevel"}};
  json["added_tokens"] = {hf_added(259, "<|bos|>"), hf_added(260, "<|turn|>", false)};
  return json;
}

/// One like Mixtral's: byte pieces, a space symbol in front of every word, <unk> <s> </s>.
inline nlohmann::ordered_json byte_fallback_tokenizer() {
  std::vector<std::string> pieces = {"<unk>", "<s>", "</s>"};
  for (int byte = 0; byte < 256; ++byte) pieces.push_back(fmt::format("<0x{:02X}>", byte));
  for (const char* piece : {"\u2581", "a", "b", "ab", "\u2581ab"}) pieces.emplace_back(piece);
  auto json = hf_tokenizer(pieces, {"a b", "\u2581 ab"});
  json["model"]["byte_fallback"] = json["model"]["fuse_unk"] = true;
  json["model"]["unk_token"] = "<unk>";
  json["normalizer"] = {
      {"type", "Sequence"},
      {"normalizers",
       {{{"type", "Prepend"}, {"prepend", "\u2581"}},
        {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "\u2581"}}}}};
  json["decoder"] = {{"type", "Sequence"},
                     {"decoders",
                      {{{"type", "Replace"}, {"pattern", {{"String", "\u2581"}}}, {"content", " "}},
                       {{"type", "ByteFallback"}},
                       {{"type", "Fuse"}},
                       {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}};
  json["added_tokens"] = {hf_added(0, "<unk>"), hf_added(1, "<s>"), hf_added(2, "</s>")};
  json["post_processor"] = {
      {"type", "TemplateProcessing"},
      {"single",
       {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}},
        {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
      {"pair", nlohmann::ordered_json::array()},
      {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {1}}, {"tokens", {"<s>"}}}}}}};
  return json;
}

}  // namespace mixtral
