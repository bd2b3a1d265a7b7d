#pragma once

#include <sentencepiece_processor.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/random.h"
#include "tests/support/files.h"
#include "tests/support/source_directory.h"
#include "text/sentencepiece_training.h"

namespace mixtral {

/// Real inputs that stand outside the repository; empty where they are absent.
inline std::filesystem::path shared_file(const std::string& name) {
  const auto path = source_directory() / ".." / "shared" / name;
  return std::filesystem::exists(path) ? path : std::filesystem::path{};
}

inline std::string bytes_of(std::u8string_view text) {
  return {reinterpret_cast<const char*>(text.data()), text.size()};
}

/// The SentencePiece library on the same model: the reference.
inline std::unique_ptr<sentencepiece::SentencePieceProcessor> reference_processor(
    const std::string& model) {
  auto processor = std::make_unique<sentencepiece::SentencePieceProcessor>();
  const auto status = processor->LoadFromSerializedProto(model);
  if (!status.ok()) throw std::runtime_error(status.ToString());
  return processor;
}

inline void append_utf8(std::string& text, uint32_t code_point) {
  if (code_point < 0x80) {
    text += static_cast<char>(code_point);
  } else if (code_point < 0x800) {
    text += static_cast<char>(0xC0 | code_point >> 6);
    text += static_cast<char>(0x80 | (code_point & 63));
  } else if (code_point < 0x10000) {
    text += static_cast<char>(0xE0 | code_point >> 12);
    text += static_cast<char>(0x80 | (code_point >> 6 & 63));
    text += static_cast<char>(0x80 | (code_point & 63));
  } else {
    text += static_cast<char>(0xF0 | code_point >> 18);
    text += static_cast<char>(0x80 | (code_point >> 12 & 63));
    text += static_cast<char>(0x80 | (code_point >> 6 & 63));
    text += static_cast<char>(0x80 | (code_point & 63));
  }
}

/// Any valid code point, drawn by plane so that every UTF-8 length is common.
inline uint32_t random_code_point(RandomStream& random) {
  while (true) {
    const uint32_t limits[] = {0x80, 0x800, 0x10000, 0x110000};
    const auto point = static_cast<uint32_t>(random.below(limits[random.below(4)]));
    if (point < 0xD800 || point >= 0xE000) return point;
  }
}

/// Valid UTF-8 of one of several flavours: words, scripts, emoji, spaces and tabs, noise, text that
/// imitates special pieces, and strings of a model's own pieces.
inline std::string random_text(RandomStream& random, const std::vector<std::string>& pieces) {
  static const std::vector<std::string> snippets = {
      " ",
      "  ",
      "   ",
      "\t",
      "\n",
      "\r\n",
      "\xE2\x96\x81",
      "</s>",
      "<s>",
      "<unk>",
      "<0x0A>",
      "[INST]",
      "http://",
      "don't",
      "foo_bar",
      "(x);",
      "12345",
      "3.14",
      "\xC2\xA0",
      "\xE3\x80\x80",
      "\xEF\xBF\xBD",
      "e\xCC\x81",
      "\xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x91\xA7",
      "\xE2\x84\xA2",
      "\xEF\xAC\x81",
      "\xD0\x9F\xD1\x80\xD0\xB8\xD0\xB2\xD0\xB5\xD1\x82",
      "\xE6\x97\xA5\xE6\x9C\xAC",
      "\xED\x95\x9C\xEA\xB5\xAD",
      "\xD7\xA9\xD7\x9C\xD7\x95\xD7\x9D",
      "\xE0\xA4\xA8\xE0\xA4\xAE"};
  std::string text;
  const auto flavour = random.below(6);
  const auto parts = random.below(40);
  for (uint64_t i = 0; i < parts; ++i) {
    switch (flavour == 5 ? random.below(5) : flavour) {
      case 0:
        for (uint64_t n = 1 + random.below(9); n > 0; --n) {
          text += static_cast<char>('a' + random.below(26));
        }
        text += ' ';
        break;
      case 1:
        append_utf8(text, random_code_point(random));
        break;
      case 2:
        text += snippets[random.below(snippets.size())];
        break;
      case 3:
        text += static_cast<char>(random.below(128));
        break;
      default:
        if (!pieces.empty()) text += pieces[random.below(pieces.size())];
        break;
    }
  }
  return text;
}

/// English-like text of `sentences` lines from a few dozen words.
inline std::string plain_text(uint64_t seed, int sentences) {
  static const std::vector<std::string> words = {
      "the",   "a",     "fox",    "river", "old",  "quickly", "house",   "and",   "with",   "under",
      "Mara",  "Who",   "owns",   "red",   "boat", "walked",  "talked",  "brief", "Be",     "then",
      "bread", "baker", "basket", "seven", "17",   "1984",    "singing", "song",  "answer", "?"};
  RandomStream random(seed);
  std::string text;
  for (int i = 0; i < sentences; ++i) {
    for (uint64_t n = 4 + random.below(9); n > 0; --n) {
      text += words[random.below(words.size())] + (n == 1 ? ".\n" : " ");
    }
  }
  return text;
}

/// The bytes of a small model of Mixtral's kind, trained once on plain_text.
inline const std::string& own_model() {
  static const std::string model = [] {
    const TemporaryDirectory directory;
    write_file(directory.path() / "text.txt", plain_text(7, 2000));
    SentencePieceTraining settings;
    settings.vocab_size = 400;
    return train_sentencepiece({directory.path() / "text.txt"}, settings).model;
  }();
  return model;
}

}  // namespace mixtral
