// Damaged and hostile model files: refused with a sentence, or harmless; never a crash.
#include "text/sentencepiece_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "tests/text/text_cases.h"
#include "text/charsmap.h"
#include "text/protobuf.h"
#include "text/sentencepiece_tokenizer.h"
#include "text/utf8.h"

namespace mixtral {
namespace {

using testing::HasSubstr;
using testing::StartsWith;
using PieceType = SentencePieceModel::PieceType;

/// A valid model of a few pieces: <unk>, <s>, </s>, letters and a pair.
SentencePieceModel small_model() {
  SentencePieceModel model;
  model.pieces = {{"<unk>", 0, PieceType::unknown}, {"<s>", 0, PieceType::control},
                  {"</s>", 0, PieceType::control},  {"a", -1, PieceType::normal},
                  {"b", -2, PieceType::normal},     {"ab", -0.5f, PieceType::normal}};
  index_special_pieces(model, "small");
  return model;
}

/// Loads the bytes and, where they are accepted, uses them; returns whether they were.
bool load_and_use(const std::string& bytes) {
  try {
    const SentencePieceTokenizer tokenizer(bytes, "hostile.model");
    for (const std::string& text : {std::string("The ab  fox \xE2\x96\x81 </s> \xEF\xAC\x81 \xFF"),
                                    std::string(300, 'a'), std::string("\0\t\n", 3)}) {
      const auto ids = tokenizer.encode(text);
      const auto decoded = tokenizer.decode(ids);
      EXPECT_LE(decoded.size(), 4096u * (text.size() + 1));
      for (const int32_t id : ids) EXPECT_FALSE(tokenizer.is_control(id));
    }
    return true;
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), StartsWith("hostile.model"));
    return false;
  }
}

TEST(SentencePieceModel, RoundTripsThroughItsSerializedForm) {
  for (const std::string& bytes : {own_model(), serialize(small_model())}) {
    const auto model = parse_sentencepiece_model(bytes, "a");
    const auto again = parse_sentencepiece_model(serialize(model), "b");
    ASSERT_EQ(again.pieces.size(), model.pieces.size());
    for (size_t i = 0; i < model.pieces.size(); ++i) {
      EXPECT_EQ(again.pieces[i].text, model.pieces[i].text);
      EXPECT_EQ(again.pieces[i].score, model.pieces[i].score);
      EXPECT_EQ(again.pieces[i].type, model.pieces[i].type);
    }
    EXPECT_EQ(again.kind, model.kind);
    EXPECT_EQ(again.byte_fallback, model.byte_fallback);
    EXPECT_EQ(again.bos_id, 1);
    EXPECT_EQ(again.eos_id, 2);
    EXPECT_EQ(again.pad_id, -1);
  }
}

TEST(SentencePieceModel, TruncatedFilesAreRefused) {
  const std::string& whole = own_model();
  EXPECT_TRUE(load_and_use(whole));
  for (size_t size = 0; size < whole.size(); size += 1 + size / 300) {
    // Cuts between two pieces too: what is left is well-formed, but has no settings.
    EXPECT_FALSE(load_and_use(whole.substr(0, size))) << size;
  }
}

TEST(SentencePieceModel, FlippedBitsNeverCrash) {
  RandomStream random(31);
  const std::string& whole = own_model();
  for (int i = 0; i < 3000; ++i) {
    SCOPED_TRACE("seed 31, case " + std::to_string(i));
    std::string bytes = whole;
    for (uint64_t n = 1 + random.below(3); n > 0; --n) {
      // Half of the flips in the settings at the end, which hold more than their share of trouble.
      const size_t at =
          random.below(2) == 0 ? random.below(bytes.size()) : bytes.size() - 1 - random.below(100);
      bytes[at] = static_cast<char>(bytes[at] ^ (1 << random.below(8)));
    }
    load_and_use(bytes);
  }
}

TEST(SentencePieceModel, RandomBytesAreRefused) {
  RandomStream random(32);
  for (int i = 0; i < 2000; ++i) {
    std::string bytes;
    for (uint64_t n = random.below(200); n > 0; --n) {
      bytes += static_cast<char>(random.below(random.below(2) == 0 ? 256 : 32));
    }
    EXPECT_FALSE(load_and_use(bytes)) << "seed 32, case " << i;
  }
}

TEST(SentencePieceModel, EachBrokenRuleIsNamed) {
  struct Case {
    const char* message;
    std::function<void(SentencePieceModel&)> damage;
  };
  const std::vector<Case> cases = {
      {"has no pieces", [](auto& m) { m.pieces.clear(); }},
      {"piece 3 is empty", [](auto& m) { m.pieces[3].text.clear(); }},
      {"piece 4 ('a') appears twice", [](auto& m) { m.pieces[4].text = "a"; }},
      {"piece 2 ('<s>') appears twice", [](auto& m) { m.pieces[2].text = "<s>"; }},
      {"piece 3 is not valid UTF-8", [](auto& m) { m.pieces[3].text = "\xE2\x96"; }},
      {"piece 3 has 513 bytes, expected at most 512",
       [](auto& m) { m.pieces[3].text.assign(513, 'x'); }},
      {"piece 3 has the score nan",
       [](auto& m) { m.pieces[3].score = std::numeric_limits<float>::quiet_NaN(); }},
      {"piece 3 has the score inf",
       [](auto& m) { m.pieces[3].score = std::numeric_limits<float>::infinity(); }},
      {"no unknown piece", [](auto& m) { m.pieces[0].type = PieceType::control; }},
      {"both the unknown piece", [](auto& m) { m.pieces[4].type = PieceType::unknown; }},
      {"is marked as a byte but byte fallback is off",
       [](auto& m) { m.pieces.push_back({"<0x41>", 0, PieceType::byte}); }},
      {"the piece <0x00> is missing", [](auto& m) { m.byte_fallback = true; }},
      {"is not named <0xNN>",
       [](auto& m) {
         m.byte_fallback = true;
         m.pieces.push_back({"<0x4a>", 0, PieceType::byte});
       }},
      {"field 3 is 7, expected 1 to 6", [](auto& m) { m.pieces[3].type = PieceType{7}; }},
      {"the model type is WORD",
       [](auto& m) { m.kind = static_cast<SentencePieceModel::Kind>(3); }},
      {"character map is damaged", [](auto& m) { m.charsmap = "xyz"; }},
  };
  for (const Case& c : cases) {
    auto model = small_model();
    c.damage(model);
    EXPECT_THAT(message_of([&] { parse_sentencepiece_model(serialize(model), "x.model"); }),
                testing::AllOf(StartsWith("x.model: "), HasSubstr(c.message)));
  }
}

TEST(SentencePieceModel, MalformedMessagesAreRefused) {
  const std::string valid = serialize(small_model());
  ProtoWriter twice;
  twice.bytes(3, "");
  ProtoWriter denormalizer_spec, denormalizer;
  denormalizer_spec.bytes(2, "rules");
  denormalizer.bytes(5, denormalizer_spec.message());
  ProtoWriter number_for_piece;
  number_for_piece.varint(1, 5);
  const std::vector<std::pair<std::string, const char*>> cases = {
      {"", "the file is empty"},
      {valid.substr(0, valid.find("identity") - 4), "without the normaliser settings"},
      {std::string("\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01", 11), "does not fit"},
      {std::string("\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F", 11), "more than 64 bits"},
      {std::string("\x0A\xFF\xFF\xFF\xFF\x0F", 6), "does not fit"},
      {std::string("\x0A", 1), "ends inside a number"},
      {std::string("\x02\x00", 2), "field number is out of range"},
      {std::string("\x0B", 1), "wire type 3 is not supported"},
      {std::string("\x0F", 1), "wire type 7 is not supported"},
      {std::string("\x0D\x01", 2), "ends inside a fixed-width value"},
      {number_for_piece.message(), "wire type 0"},
      {valid + twice.message(), "appears twice"},
      {valid + denormalizer.message(), "denormaliser"},
  };
  for (const auto& [bytes, message] : cases) {
    EXPECT_THAT(message_of([&] { parse_sentencepiece_model(bytes, "x.model"); }),
                testing::AllOf(StartsWith("x.model: "), HasSubstr(message)));
  }
}

TEST(SentencePieceModel, TooManyPiecesAreRefusedBeforeTheyCost) {
  ProtoWriter piece, file;
  piece.bytes(1, "x");
  std::string bytes;
  file.bytes(1, piece.message());
  for (size_t i = 0; i <= kMaxPieces; ++i) bytes += file.message();
  EXPECT_THAT(message_of([&] { parse_sentencepiece_model(bytes, "x.model"); }),
              HasSubstr("more than 1048576 pieces"));
}

TEST(SentencePieceModel, PiecesThatNestDeeplyLoadAndEncodeQuickly) {
  auto model = small_model();
  model.add_dummy_prefix = model.remove_extra_whitespaces = false;
  for (size_t length = 2; length <= kMaxPieceBytes; ++length) {
    model.pieces.push_back({std::string(length, 'a'), -1, PieceType::normal});
  }
  const SentencePieceTokenizer tokenizer(serialize(model), "x.model");
  const std::string text(200000, 'a');
  EXPECT_TRUE(tokenizer.decode(tokenizer.encode(text)) == text);
}

// ---- character maps

uint32_t inner(uint32_t label, uint32_t offset, bool leaf) {
  return label | offset << 10 | (leaf ? 0x100u : 0);
}

std::string charsmap_blob(const std::vector<uint32_t>& units, std::string_view replacements) {
  std::string blob;
  const auto put = [&](uint32_t word) {
    for (int shift = 0; shift < 32; shift += 8) blob += static_cast<char>(word >> shift);
  };
  put(static_cast<uint32_t>(units.size() * 4));
  for (const uint32_t unit : units) put(unit);
  return blob + std::string(replacements);
}

/// One rule, "a" -> "xy": the root's children stand at 256 ^ label, the leaf below "a" at 512.
std::vector<uint32_t> one_rule() {
  std::vector<uint32_t> units(768, 0);
  units[0] = inner(0, 256, false);
  units[256 ^ 'a'] = inner('a', 256 ^ 'a' ^ 512, true);
  units[512] = 0x80000000u;
  return units;
}

TEST(Charsmap, FindsTheLongestRule) {
  const Charsmap map(charsmap_blob(one_rule(), std::string_view("xy\0", 3)), "x");
  EXPECT_EQ(map.longest_match("ab").length, 1u);
  EXPECT_EQ(map.longest_match("ab").replacement, "xy");
  EXPECT_EQ(map.longest_match("ba").length, 0u);
  EXPECT_EQ(map.longest_match("").length, 0u);
}

TEST(Charsmap, DamageIsRefused) {
  const std::string_view replacements("xy\0", 3);
  struct Case {
    const char* message;
    std::function<std::string()> blob;
  };
  const std::vector<Case> cases = {
      {"trie of 0", [] { return std::string("abc"); }},
      {"trie of 4294967295", [] { return std::string("\xFF\xFF\xFF\xFF rest"); }},
      {"multiple of 1024",
       [&] { return charsmap_blob(std::vector<uint32_t>(100, 0), replacements); }},
      {"do not end in NUL", [] { return charsmap_blob(one_rule(), "xy"); }},
      {"do not end in NUL", [] { return charsmap_blob(one_rule(), ""); }},
      {"points outside the trie",
       [&] {
         auto units = one_rule();
         units[256 ^ 'a'] = inner('a', 1u << 20, true);
         return charsmap_blob(units, replacements);
       }},
      {"points outside the replacements",
       [&] {
         auto units = one_rule();
         units[512] = 0x80000000u | 3;
         return charsmap_blob(units, replacements);
       }},
      {"has a cycle",
       [&] {
         auto units = one_rule();
         units[256 ^ 'a'] = inner('a', 'a', false);  // its children are the root's
         return charsmap_blob(units, replacements);
       }},
      {"a replacement is not UTF-8",
       [] { return charsmap_blob(one_rule(), std::string_view("\xFF\0", 2)); }},
      {"a replacement has more than 128 bytes",
       [] { return charsmap_blob(one_rule(), std::string(5000, 'x') + '\0'); }},
      {"a key is too long",
       [&] {
         std::vector<uint32_t> units(256 * 202, 0);
         units[0] = inner(0, 256, false);
         for (uint32_t i = 1; i <= 200; ++i) {
           const uint32_t self = (i * 256) ^ 'a', children = (i + 1) * 256;
           units[self] = inner('a', self ^ children, false);
         }
         return charsmap_blob(units, replacements);
       }},
  };
  for (const Case& c : cases) {
    EXPECT_THAT(message_of([&] { Charsmap(c.blob(), "x.model"); }),
                testing::AllOf(StartsWith("x.model: "), HasSubstr(c.message)));
  }
}

TEST(Charsmap, FlippedBitsNeverCrash) {
  RandomStream random(33);
  auto model = small_model();
  const std::string blob = charsmap_blob(one_rule(), std::string_view("xy\0z\0", 5));
  for (int i = 0; i < 3000; ++i) {
    SCOPED_TRACE("seed 33, case " + std::to_string(i));
    model.charsmap = blob;
    // Aim at the few units that count.
    const size_t targets[] = {0, 4, 4 + 4 * (256 ^ 'a'), 4 + 4 * 512, blob.size() - 5};
    const size_t at = targets[random.below(5)] + random.below(4);
    model.charsmap[at] = static_cast<char>(model.charsmap[at] ^ (1 << random.below(8)));
    load_and_use(serialize(model));
  }
}

}  // namespace
}  // namespace mixtral
