#include "convert/sample_text.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "data/batches.h"

namespace mixtral {

HostBatch sample_text(const ModelSource& source, const std::filesystem::path& file,
                      const SampleOptions& options) {
  const ModelConfig& config = source.config();
  ThreadPool pool(options.threads);
  CorpusOptions how;
  how.encode.rules.vocab_size = config.vocab_size;
  if (const auto noted = source.chat_template()) how.encode.rules.chat_template = *noted;
  const Corpus corpus = load_corpus(file, source.tokenizer().get(), how, pool);
  const int64_t context = std::min(options.context, config.max_positions);
  Batches batches(corpus, {.context = context,
                           .rows = std::max<int64_t>(1, options.tokens / context),
                           .packing = Packing::on,
                           .endless = false,
                           .data = file.string()});
  auto batch = batches.next();
  if (!batch || batch->label_count() == 0)
    throw Error(fmt::format("{}: there is no text to score in it", file.string()));
  return std::move(*batch);
}

}  // namespace mixtral
