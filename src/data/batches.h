#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/corpus.h"
#include "io/json.h"
#include "model/batch.h"

namespace mixtral {

/// How documents become rows of at most T tokens. In no mode does a document attend to another:
/// each piece of one is a sequence of its own, with positions from 0.
enum class Packing {
  off,   // one record a row, cut off after T tokens
  on,    // whole records share rows; those longer than T become windows of T, each a piece
  fill,  // as `on`, but rows are exactly T tokens: a piece is cut where a row ends
};
/// "off", "on", "fill". Throws UsageError naming the flag's values.
Packing parse_packing(std::string_view name);

struct BatchOptions {
  int64_t context = 256;  // T
  int64_t rows = 8;       // a batch; a row of preference data is a pair
  Packing packing = Packing::on;
  bool shuffle = true;
  /// Rows are T tokens from anywhere in the text, drawn anew each time (as nanoGPT trains), rather
  /// than each document once an epoch.
  bool random_windows = false;
  bool endless = true;  // goes on to the next epoch; otherwise ends after one
  /// Leave out what holds no label: records whose answer is cut off, windows within a masked
  /// prompt. A loss of it would be a mean over nothing.
  bool labelled_only = true;
  uint64_t seed = 1;
  std::string data = "the data";  // what messages call the corpus
};

/// Rows of a corpus, batch by batch. All randomness comes from (seed, epoch), so that the whole
/// state is the epoch and the row within it.
class Batches {
 public:
  /// The corpus must outlive this. Throws UsageError for options that make no sense together, and
  /// Error when no label is left.
  Batches(const Corpus& corpus, const BatchOptions& options);

  /// The next batch of options.rows rows, or of `rows`: fewer at the end of a pass, then nothing.
  /// Labels are shifted: label i is the token after i in its document, or -100 at a document's end
  /// and where it is masked. The last token of a window that ends within its document has the
  /// document's next token as label, so that no token goes unlearnt; the end of a record that was
  /// cut off by Packing::off has none. With labelled_only every batch has a label.
  std::optional<HostBatch> next() { return next(options_.rows); }
  std::optional<HostBatch> next(int64_t rows);
  void rewind();

  /// How far it has come, as JSON; restore() goes on from there. Throws Error for a position of
  /// other data or another seed.
  std::string position() const;
  void restore(const Json& position);
  const Corpus& corpus() const { return corpus_; }
  uint64_t epoch() const { return epoch_; }
  int64_t row() const { return row_; }

  int64_t rows_per_epoch() const { return rows_per_epoch_; }
  /// Tokens of an epoch as arranged: fewer than the corpus has where records are cut off.
  int64_t tokens_per_epoch() const { return tokens_per_epoch_; }
  /// Records longer than T, and the tokens that Packing::off drops of them.
  int64_t long_records() const { return long_records_; }
  int64_t dropped_tokens() const { return dropped_tokens_; }
  /// Records (of preference data: pairs) that were left out because no label of theirs is left.
  int64_t unlabelled_records() const { return unlabelled_records_; }
  /// Whether at least half of the rows are one sequence of T tokens, so that batches of nothing
  /// else are to be expected.
  bool mostly_full() const;

 private:
  struct Piece {
    int64_t begin;  // among the corpus's tokens
    int32_t length;
    bool goes_on;  // the document's next token is known to follow
  };
  void cut_pieces();
  void leave_out_unlabelled();
  [[noreturn]] void refuse_unlabelled() const;
  int64_t row_of_a_label(int64_t document) const;  // tokens up to its first label
  std::optional<HostBatch> next_of_any_kind(int64_t rows);
  void arrange();  // the rows of epoch_
  void pack_whole(const std::vector<Piece>& pieces);
  void pack_exact(const std::vector<Piece>& pieces);
  void append(const Piece& piece, HostBatch& batch) const;
  void append_random_window(HostBatch& batch) const;

  const Corpus& corpus_;
  BatchOptions options_;
  std::vector<Piece> pieces_;        // of every document, in file order
  std::vector<Piece> arranged_;      // in the order of this epoch
  std::vector<int64_t> row_starts_;  // [rows + 1] into arranged_
  uint64_t epoch_ = 0;
  int64_t row_ = 0;
  int64_t rows_per_epoch_ = 0, tokens_per_epoch_ = 0, long_records_ = 0, dropped_tokens_ = 0;
  int64_t unlabelled_records_ = 0;
};

}  // namespace mixtral
