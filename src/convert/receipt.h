#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "io/checksum.h"

namespace mixtral {

/// A tensor of a source's files.
struct ReceiptOrigin {
  std::string name;
  std::string sum;    // XXH3 of its bytes there, 16 hex digits
  size_t source = 0;  // which of Receipt::edit's sources
};

/// A tensor of the source's files, and what became of it. Of an edited model, a tensor of the
/// result and what it was made of: perhaps of nothing, and `source` is then empty.
struct ReceiptTensor {
  std::string source;       // its name in the source's files
  std::string source_type;  // as those name it: "BF16", "Q4_K"
  std::vector<int64_t> source_shape;
  std::string source_sum;             // XXH3 of its bytes there, 16 hex digits
  size_t source_model = 0;            // which of Receipt::edit's sources
  std::vector<ReceiptOrigin> others;  // what it was made of beside that
  std::string model;                  // which tensor of the model it holds, by Hugging Face's name
  std::string target;                 // its name in the target's files
  std::string target_type;
  std::vector<int64_t> target_shape;
  int64_t part = -1;      // where in the target's first dimension; -1: it has the whole tensor
  std::string transform;  // in words: "copied", "rounded to q4_k; rotary pairs as neighbours"
  double difference = 0;  // the largest change of a number, as a share of the largest number
};

/// A tensor of the target's files.
struct ReceiptTarget {
  std::string type;
  std::vector<int64_t> shape;
  std::string sum;  // XXH3 of its bytes
};

/// How the logits of two models differ on a fixed prompt.
struct LogitComparison {
  std::vector<int32_t> tokens;
  double difference = 0;     // max |a - b| / max |a|
  double top_agreement = 0;  // share of positions with the same most likely token
  // Of the source, so that the target can be checked where the source is gone:
  std::vector<int32_t> top;     // the most likely token at each position
  std::vector<double> largest;  // and its logit
  bool compared = false;
};

/// One of the models that an edited model was made of.
struct ReceiptSource {
  std::string path, format;
  std::vector<std::string> dropped;  // tensors that the result has no use for
  std::vector<std::string> unused;   // that no model needs
};

/// What was done to a model's experts.
struct ReceiptEdit {
  std::string operation;               // in words; empty: nothing
  std::vector<ReceiptSource> sources;  // the first is Receipt::source
};

/// What a conversion did, tensor by tensor; receipt.json.
struct Receipt {
  std::string source, source_format;  // an absolute path
  std::string target_format;
  std::string type;  // as the user named it; empty: the source's own
  bool lossless = true;
  uint64_t weight_bytes = 0;  // of the target's tensors
  std::vector<ReceiptTensor> tensors;
  std::map<std::string, ReceiptTarget> targets;  // by name
  std::map<std::string, FileChecksum> files;     // of the target, relative to its directory
  std::vector<std::string> companions;           // files that were copied or kept
  std::vector<std::string> unused;               // tensors of the source that no model needs
  std::vector<std::string> unaccounted;          // of the source: must be empty
  LogitComparison logits;                        // of an edited model, with what was to be written
  ReceiptEdit edit;

  std::string to_json() const;
  static Receipt load(const std::filesystem::path& file);
};

/// Where the receipt of a model is: in its directory, or beside its file.
std::filesystem::path receipt_path(const std::filesystem::path& model);

}  // namespace mixtral
