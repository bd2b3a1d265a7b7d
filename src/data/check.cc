#include "data/check.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "base/advice.h"
#include "base/error.h"
#include "base/file.h"
#include "data/control_text.h"
#include "data/splits.h"
#include "ops/vocab.h"

namespace mixtral {
namespace {

constexpr int64_t kSampleTokens = 4096;

void show_sample(const Corpus& corpus, const Tokenizer* tokenizer, int64_t record,
                 SplitReport& report) {
  const int64_t documents = corpus.documents() / (corpus.is_paired() ? 2 : 1);
  if (documents == 0) return;
  const int64_t d = std::min(record, documents - 1) * (corpus.is_paired() ? 2 : 1);
  const int64_t begin = corpus.starts()[static_cast<size_t>(d)];
  const int64_t end = begin + std::min(corpus.length(d), kSampleTokens);
  for (int64_t i = begin; i < end; ++i) {
    const int32_t id = corpus.token(i);
    const bool known = tokenizer != nullptr && id < tokenizer->vocab_size();
    report.sample.push_back({id, known ? tokenizer->label(id) : std::string(),
                             i > begin && corpus.label(i) != ops::kIgnoredLabel});
    if (tokenizer != nullptr && id == tokenizer->bos_id()) ++report.sample_bos;
  }
}

int64_t longest_record(const Corpus& corpus) {
  int64_t longest = 1;
  for (int64_t d = 0; d < corpus.documents(); ++d) longest = std::max(longest, corpus.length(d));
  return longest;
}

/// Counts rows as training will make them; that there would be none is a problem of the split.
void arrange(const Corpus& corpus, const CheckOptions& check, SplitReport& report) {
  BatchOptions options = check.batches;
  options.data = report.path.string();
  if (check.whole_records && (corpus.is_paired() || options.packing == Packing::off))
    options.context = longest_record(corpus);
  report.context = options.context;
  try {
    const Batches batches(corpus, options);
    report.rows = batches.rows_per_epoch();
    report.arranged_tokens = batches.tokens_per_epoch();
    report.long_records = batches.long_records();
    report.dropped_tokens = batches.dropped_tokens();
    report.unlabelled_records = batches.unlabelled_records();
  } catch (const UsageError&) {
    throw;
  } catch (const Error& error) {
    ++report.problem_count;
    report.problems.push_back({0, error.what()});
  }
}

}  // namespace

int64_t CheckReport::problem_count() const {
  int64_t count = 0;
  for (const SplitReport& report : splits) count += report.problem_count;
  return count;
}

CheckReport check_data(const DataFiles& files, const Tokenizer* tokenizer,
                       const CheckOptions& options, ThreadPool& pool) {
  CheckReport result;
  std::vector<uint64_t> train_lines;
  for (Split split : kSplits) {
    if (!has_split(files, split, options.validation_fraction)) continue;
    SplitReport report;
    report.split = split;
    report.path = files.single ? files.train : files[split];
    if (split == Split::val) report.part = validation_text(files, options.validation_fraction);
    CorpusResult read =
        read_split(files, split, options.validation_fraction, tokenizer, options.corpus, pool);
    report.counts = read.corpus.counts();
    report.problems = std::move(read.problems);
    report.problem_count = read.problem_count;
    if (split == Split::train) {
      train_lines = std::move(read.line_hashes);
    } else {
      std::vector<uint64_t> both;
      std::set_intersection(train_lines.begin(), train_lines.end(), read.line_hashes.begin(),
                            read.line_hashes.end(), std::back_inserter(both));
      report.also_in_train = static_cast<int64_t>(both.size());
    }
    if (read.corpus.tokens() > 0) {
      arrange(read.corpus, options, report);
      show_sample(read.corpus, tokenizer, options.sample, report);
    }
    if (tokenizer != nullptr && files.texts.empty())
      report.spelled_controls = spelled_controls(*tokenizer, MappedFile(report.path).text());
    result.splits.push_back(std::move(report));
  }
  return result;
}

FixSummary fix_data(const RecordFile& file, const std::filesystem::path& out,
                    const RecordRules& rules) {
  if (file.is_plain_text()) {
    throw Error(fmt::format("{}: plain text has no records to mend", file.path().string()));
  }
  if (std::filesystem::exists(out) && std::filesystem::equivalent(out, file.path())) {
    throw AdvisedUsageError(fmt::format("‹fix {}› is the file itself; name another", out.string()));
  }
  FixSummary summary;
  AtomicFile copy(out);
  for (int64_t i = 0; i < file.lines(); ++i) {
    ++summary.lines;
    const auto fixed = fix_record(file.line(i), rules);
    if (!fixed) {
      ++summary.dropped;
      continue;
    }
    ++(*fixed == file.line(i) ? summary.kept : summary.mended);
    copy.write(*fixed + "\n");
  }
  if (summary.kept + summary.mended == 0) {
    throw Error(fmt::format("{}: none of its {} lines is a record, so there is nothing to write",
                            file.path().string(), summary.lines));
  }
  copy.commit();
  return summary;
}

}  // namespace mixtral
