#include "text/sentencepiece_model.h"

#include <fmt/format.h>

#include <cmath>
#include <unordered_set>

#include "base/error.h"
#include "io/git_lfs.h"
#include "io/json.h"
#include "text/charsmap.h"
#include "text/protobuf.h"
#include "text/utf8.h"

namespace mixtral {
namespace {

using Piece = SentencePieceModel::Piece;
using PieceType = SentencePieceModel::PieceType;

/// Refuses a field that stands twice in one message: libraries disagree on which one counts.
class OnlyOnce {
 public:
  explicit OnlyOnce(std::string context) : context_(std::move(context)) {}
  bool saw(uint32_t number) const { return seen_.contains(number); }
  void operator()(const ProtoField& field) {
    if (!seen_.insert(field.number).second) {
      throw Error(fmt::format("{}: field {} appears twice, expected once; the file is damaged",
                              context_, field.number));
    }
  }
  const std::string& context() const { return context_; }

 private:
  std::string context_;
  std::unordered_set<uint32_t> seen_;
};

Piece parse_piece(std::string_view message, std::string context) {
  Piece piece;
  OnlyOnce once(std::move(context));
  ProtoReader reader(message, once.context());
  for (ProtoField field; reader.next(field);) {
    switch (field.number) {
      case 1:
        once(field), piece.text = field.as_bytes(once.context());
        break;
      case 2:
        once(field), piece.score = field.as_float(once.context());
        break;
      case 3:
        once(field);
        piece.type = static_cast<PieceType>(field.as_enum(once.context(), 1, 6));
        break;
      default:
        break;  // an extension
    }
  }
  return piece;
}

void parse_trainer(std::string_view message, std::string_view source, SentencePieceModel& model) {
  OnlyOnce once(fmt::format("{}: trainer settings", source));
  const std::string& context = once.context();
  ProtoReader reader(message, context);
  uint64_t kind = 1;
  for (ProtoField field; reader.next(field);) {
    switch (field.number) {
      case 3:
        once(field), kind = field.as_enum(context, 1, 4);
        break;
      case 24:
        once(field), model.whitespace_as_suffix = field.as_bool(context);
        break;
      case 35:
        once(field), model.byte_fallback = field.as_bool(context);
        break;
      case 44:
        once(field), model.unk_surface = field.as_bytes(context);
        break;
      case 45:
        once(field), model.unk_piece = field.as_bytes(context);
        break;
      case 46:
        once(field), model.bos_piece = field.as_bytes(context);
        break;
      case 47:
        once(field), model.eos_piece = field.as_bytes(context);
        break;
      case 48:
        once(field), model.pad_piece = field.as_bytes(context);
        break;
      default:
        break;  // how the model was trained, which encoding does not depend on
    }
  }
  if (kind > 2) {
    throw Error(fmt::format(
        "{}: the model type is {}, expected BPE or unigram; train one with `mixtral tokenizer "
        "train`",
        source, kind == 3 ? "WORD" : "CHAR"));
  }
  model.kind = static_cast<SentencePieceModel::Kind>(kind);
}

void parse_normalizer(std::string_view message, std::string_view source,
                      SentencePieceModel& model) {
  OnlyOnce once(fmt::format("{}: normaliser settings", source));
  const std::string& context = once.context();
  ProtoReader reader(message, context);
  model.normalizer.clear();
  for (ProtoField field; reader.next(field);) {
    switch (field.number) {
      case 1:
        once(field), model.normalizer = field.as_bytes(context);
        break;
      case 2:
        once(field), model.charsmap = field.as_bytes(context);
        break;
      case 3:
        once(field), model.add_dummy_prefix = field.as_bool(context);
        break;
      case 4:
        once(field), model.remove_extra_whitespaces = field.as_bool(context);
        break;
      case 5:
        once(field), model.escape_whitespaces = field.as_bool(context);
        break;
      default:
        break;
    }
  }
  if (model.normalizer.empty()) model.normalizer = model.charsmap.empty() ? "identity" : "unnamed";
}

void refuse_denormalizer(std::string_view message, std::string_view source) {
  ProtoReader reader(message, source);
  for (ProtoField field; reader.next(field);) {
    if (field.number == 2 && !field.as_bytes(source).empty()) {
      throw Error(fmt::format(
          "{}: the model rewrites decoded text (a denormaliser), which is not supported; retrain "
          "it without one",
          source));
    }
  }
}

/// The byte that "<0x0A>" stands for, or -1.
int byte_of_piece(std::string_view text) {
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return -1;
  constexpr std::string_view digits = "0123456789ABCDEF";
  const size_t high = digits.find(text[3]), low = digits.find(text[4]);
  if (high == std::string_view::npos || low == std::string_view::npos) return -1;
  return static_cast<int>(high * 16 + low);
}

void check_text(const Piece& piece, size_t id, std::string_view source) {
  if (piece.text.empty()) {
    throw Error(fmt::format("{}: piece {} is empty; the file is damaged", source, id));
  }
  if (piece.text.size() > kMaxPieceBytes) {
    throw Error(fmt::format("{}: piece {} has {} bytes, expected at most {}", source, id,
                            piece.text.size(), kMaxPieceBytes));
  }
  if (!is_valid_utf8(piece.text)) {
    throw Error(fmt::format("{}: piece {} is not valid UTF-8; the file is damaged", source, id));
  }
  if (!std::isfinite(piece.score)) {
    throw Error(fmt::format("{}: piece {} has the score {}, expected a finite number", source, id,
                            piece.score));
  }
}

}  // namespace

SentencePieceModel parse_sentencepiece_model(std::string_view bytes, std::string_view source) {
  if (bytes.empty()) {
    throw Error(fmt::format("{}: the file is empty, expected a SentencePiece model", source));
  }
  refuse_git_lfs_pointer(bytes, source);
  if (bytes.size() > kMaxModelBytes) {
    throw Error(
        fmt::format("{}: the file has {} bytes, expected a SentencePiece model of at most "
                    "{}",
                    source, bytes.size(), kMaxModelBytes));
  }
  SentencePieceModel model;
  model.kind = SentencePieceModel::Kind::unigram;  // the format's default
  OnlyOnce once{std::string(source)};
  ProtoReader reader(bytes, source);
  for (ProtoField field; reader.next(field);) {
    switch (field.number) {
      case 1:
        if (model.pieces.size() == kMaxPieces) {
          throw Error(fmt::format("{}: the model has more than {} pieces", source, kMaxPieces));
        }
        model.pieces.push_back(parse_piece(
            field.as_bytes(source), fmt::format("{}: piece {}", source, model.pieces.size())));
        break;
      case 2:
        once(field), parse_trainer(field.as_bytes(source), source, model);
        break;
      case 3:
        once(field), parse_normalizer(field.as_bytes(source), source, model);
        break;
      case 5:
        once(field), refuse_denormalizer(field.as_bytes(source), source);
        break;
      default:
        break;  // self-test data and extensions
    }
  }
  index_special_pieces(model, source);
  // Every writer puts these after the pieces; a file cut off between pieces is well-formed
  // otherwise.
  if (!once.saw(2) || !once.saw(3)) {
    throw Error(
        fmt::format("{}: the file ends after {} pieces without the {} settings, expected "
                    "both; it is cut short",
                    source, model.pieces.size(), once.saw(2) ? "normaliser" : "trainer"));
  }
  if (!model.charsmap.empty()) Charsmap(model.charsmap, source);  // throws if it is damaged
  return model;
}

void index_special_pieces(SentencePieceModel& model, std::string_view source) {
  if (model.pieces.empty()) {
    throw Error(
        fmt::format("{}: the model has no pieces; the file is damaged or not a "
                    "SentencePiece model",
                    source));
  }
  model.unk_id = model.bos_id = model.eos_id = model.pad_id = -1;
  model.byte_ids.fill(-1);
  // Pieces that text can turn into and reserved ones are separate name spaces, as in SentencePiece.
  std::unordered_set<std::string_view> ordinary, reserved;
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const Piece& piece = model.pieces[i];
    const auto id = static_cast<int32_t>(i);
    check_text(piece, i, source);
    const bool is_reserved = piece.type == PieceType::unknown || piece.type == PieceType::control ||
                             piece.type == PieceType::byte;
    if (!(is_reserved ? reserved : ordinary).insert(piece.text).second) {
      throw Error(fmt::format("{}: piece {} ('{}') appears twice; the file is damaged", source, i,
                              printable(piece.text)));
    }
    if (piece.type == PieceType::unknown) {
      if (model.unk_id >= 0) {
        throw Error(fmt::format("{}: pieces {} and {} are both the unknown piece, expected one",
                                source, model.unk_id, i));
      }
      model.unk_id = id;
    } else if (piece.type == PieceType::control) {
      if (piece.text == model.bos_piece) model.bos_id = id;
      if (piece.text == model.eos_piece) model.eos_id = id;
      if (piece.text == model.pad_piece) model.pad_id = id;
    } else if (piece.type == PieceType::byte) {
      const int byte = byte_of_piece(piece.text);
      if (!model.byte_fallback || byte < 0) {
        throw Error(
            fmt::format("{}: piece {} ('{}') is marked as a byte but {}; the file is "
                        "damaged",
                        source, i, printable(piece.text),
                        byte < 0 ? "is not named <0xNN>" : "byte fallback is off"));
      }
      model.byte_ids[static_cast<size_t>(byte)] = id;
    }
  }
  if (model.unk_id < 0) {
    throw Error(
        fmt::format("{}: the model has no unknown piece, expected one (usually <unk>)", source));
  }
  for (size_t byte = 0; model.byte_fallback && byte < 256; ++byte) {
    if (model.byte_ids[byte] < 0) {
      throw Error(
          fmt::format("{}: byte fallback is on but the piece <0x{:02X}> is missing", source, byte));
    }
  }
}

std::string serialize(const SentencePieceModel& model) {
  ProtoWriter file;
  for (const Piece& piece : model.pieces) {
    ProtoWriter writer;
    writer.bytes(1, piece.text);
    writer.float32(2, piece.score);
    if (piece.type != PieceType::normal) writer.varint(3, static_cast<uint64_t>(piece.type));
    file.bytes(1, writer.message());
  }
  ProtoWriter trainer;
  trainer.varint(3, static_cast<uint64_t>(model.kind));
  trainer.varint(4, model.pieces.size());
  trainer.varint(24, model.whitespace_as_suffix);
  trainer.varint(35, model.byte_fallback);
  // SentencePiece keeps the ids as 32-bit numbers; -1 is sign-extended to 64 bits on the wire.
  trainer.varint(40, static_cast<uint64_t>(int64_t{model.unk_id}));
  trainer.varint(41, static_cast<uint64_t>(int64_t{model.bos_id}));
  trainer.varint(42, static_cast<uint64_t>(int64_t{model.eos_id}));
  trainer.varint(43, static_cast<uint64_t>(int64_t{model.pad_id}));
  trainer.bytes(44, model.unk_surface);
  trainer.bytes(45, model.unk_piece);
  trainer.bytes(46, model.bos_piece);
  trainer.bytes(47, model.eos_piece);
  trainer.bytes(48, model.pad_piece);
  file.bytes(2, trainer.message());
  ProtoWriter normalizer;
  normalizer.bytes(1, model.normalizer);
  normalizer.bytes(2, model.charsmap);
  normalizer.varint(3, model.add_dummy_prefix);
  normalizer.varint(4, model.remove_extra_whitespaces);
  normalizer.varint(5, model.escape_whitespaces);
  file.bytes(3, normalizer.message());
  return file.message();
}

}  // namespace mixtral
