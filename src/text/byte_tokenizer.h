#pragma once

#include "text/tokenizer.h"

namespace mixtral {

/// A token a byte: ids 0 to 255 are the bytes themselves, and every text round-trips. With
/// specials, the default, 256 is BOS and 257 is EOS: documents then have an end that a model can
/// learn, which chat and generation need. Without them the vocabulary is exactly the 256 bytes, for
/// a plain stream of text such as one long play.
///
/// Stored as byte_tokenizer.json: {"kind": "bytes", "bos_id": 256, "eos_id": 257}, the ids null
/// when there are none.
class ByteTokenizer : public Tokenizer {
 public:
  enum class Specials { none, bos_eos };
  explicit ByteTokenizer(Specials specials = Specials::bos_eos);
  /// Throws Error naming the file when it is not as above.
  static std::unique_ptr<ByteTokenizer> load(const std::filesystem::path& file);

  std::vector<int32_t> encode(std::string_view text) const override;
  std::vector<int32_t> encode_prompt(std::string_view text) const override;
  void decode_next(int32_t id, bool& at_start, std::string& text) const override;
  std::string label(int32_t id) const override;
  bool is_control(int32_t id) const override;
  int32_t find(std::string_view label) const override;
  std::vector<std::string> control_texts() const override;
  int32_t vocab_size() const override { return special_.bos < 0 ? 256 : 258; }
  std::string kind() const override { return "bytes"; }
  std::string description() const override;
  void save(const std::filesystem::path& directory) const override;
};

}  // namespace mixtral
