#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mixtral {

/// What a SentencePiece model file says, checked. The format is the protobuf ModelProto of
/// SentencePiece's sentencepiece_model.proto.
struct SentencePieceModel {
  enum class Kind { unigram = 1, bpe = 2 };
  enum class PieceType : uint8_t {
    normal = 1,
    unknown = 2,
    control = 3,
    user_defined = 4,
    unused = 5,
    byte = 6
  };
  struct Piece {
    std::string text;
    float score = 0;
    PieceType type = PieceType::normal;
  };

  Kind kind = Kind::bpe;
  std::vector<Piece> pieces;  // the index is the token id
  bool byte_fallback = false;
  bool whitespace_as_suffix = false;

  std::string normalizer = "identity";  // its name; only `charsmap` has an effect
  std::string charsmap;                 // empty for the identity normaliser; see normalizer.h
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;

  std::string unk_piece = "<unk>", bos_piece = "<s>", eos_piece = "</s>", pad_piece = "<pad>";
  std::string unk_surface = " \u2047 ";  // what the unknown token decodes to

  // Found from the pieces by index_special_pieces(); -1 where there is none.
  int32_t unk_id = -1, bos_id = -1, eos_id = -1, pad_id = -1;
  std::array<int32_t, 256> byte_ids{};  // the token of each byte, when byte_fallback
};

/// Limits that real models are far below, so that a hostile file costs little to refuse.
inline constexpr uint64_t kMaxModelBytes = uint64_t{64} << 20;
inline constexpr size_t kMaxPieces = size_t{1} << 20;
inline constexpr size_t kMaxPieceBytes = 512;

/// Parses and checks a model file's bytes. `source` names them in errors. Refuses, with an Error
/// that says which rule is broken: malformed protobuf, repeated sections, no pieces or too many,
/// pieces that are empty, overlong, not UTF-8 or repeated, scores that are not finite, no unknown
/// piece or several, missing settings, an incomplete set of byte pieces, model types other than BPE
/// and unigram, denormalisers, and damaged character maps.
SentencePieceModel parse_sentencepiece_model(std::string_view bytes, std::string_view source);

/// Fills the ids of the special pieces and bytes from `pieces`, and checks the pieces as above.
void index_special_pieces(SentencePieceModel& model, std::string_view source);

/// The model as a file that SentencePiece itself can load.
std::string serialize(const SentencePieceModel& model);

}  // namespace mixtral
