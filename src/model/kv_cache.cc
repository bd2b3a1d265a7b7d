#include "model/kv_cache.h"

#include <algorithm>
#include <bit>

namespace mixtral {
namespace {

/// The options with what they leave open filled in.
KvCache::Options complete(const Backend& backend, const ModelConfig& config,
                          KvCache::Options options) {
  CHECK(options.sequences > 0 && options.context > 0);
  if (options.page_tokens == 0) options.page_tokens = backend.page_tokens();
  CHECK(std::has_single_bit(static_cast<uint64_t>(options.page_tokens)));
  if (options.chunk == 0) options.chunk = options.context;
  if (options.pages == 0)
    options.pages = options.sequences * KvCache::pages_of_sequence(backend, config, options);
  return options;
}

int64_t table_width(const KvCache::Options& options) {
  return (options.context + options.page_tokens - 1) / options.page_tokens;
}

int64_t page_bytes(const ModelConfig& config, const KvCache::Options& options) {
  return 2 * config.num_layers * options.page_tokens * config.num_kv_heads *
         ops::cached_width(options.type, config.head_dim) * size_of(stored_dtype(options.type));
}

int64_t table_bytes(const KvCache::Options& options) {
  return options.sequences * table_width(options) * size_of(Dtype::i32);
}

}  // namespace

int64_t KvCache::pages_of_sequence(const Backend& backend, const ModelConfig& config,
                                   const Options& options) {
  const int64_t size = options.page_tokens > 0 ? options.page_tokens : backend.page_tokens();
  const int64_t chunk = options.chunk > 0 ? options.chunk : options.context;
  const int64_t all = (options.context + size - 1) / size;
  if (config.sliding_window <= 0) return all;
  // The window of the first of `chunk` new tokens reaches window − 1 tokens back. So many tokens
  // span the most pages when the first is a page's last.
  const int64_t tokens = config.sliding_window - 1 + chunk;
  return std::min(all, (tokens + size - 2) / size + 1);
}

int64_t KvCache::bytes_needed(const Backend& backend, const ModelConfig& config,
                              const Options& options) {
  const Options whole = complete(backend, config, options);
  return whole.pages * page_bytes(config, whole) + table_bytes(whole);
}

KvCache::KvCache(Backend& backend, const ModelConfig& config, const Options& options)
    : backend_(backend),
      options_(complete(backend, config, options)),
      layers_(config.num_layers),
      window_(config.sliding_window),
      width_(table_width(options_)),
      pool_(options_.pages),
      rows_(static_cast<size_t>(options_.sequences)),
      table_(static_cast<size_t>(options_.sequences * width_), ops::kNoPage),
      changed_end_(options_.sequences),
      pages_buffer_(backend, options_.pages * page_bytes(config, options_)),
      table_buffer_(backend, table_bytes(options_)),
      pages_(pages_buffer_.tensor(
          {2 * layers_ * options_.pages, options_.page_tokens, config.num_kv_heads,
           ops::cached_width(options_.type, config.head_dim)},
          stored_dtype(options_.type))),
      device_table_(table_buffer_.tensor({options_.sequences, width_}, Dtype::i32)) {
  for (int64_t i = options_.sequences; i-- > 0;) free_rows_.push_back(static_cast<int32_t>(i));
}

const KvCache::Row& KvCache::row(int32_t sequence) const {
  CHECK(sequence >= 0 && sequence < sequences() && rows_[static_cast<size_t>(sequence)].open,
        "no such sequence is open");
  return rows_[static_cast<size_t>(sequence)];
}

void KvCache::set_entry(int32_t sequence, int64_t index, int32_t page) {
  entries(sequence)[index] = page;
  if (changed_begin_ == changed_end_) changed_begin_ = changed_end_ = sequence;
  changed_begin_ = std::min<int64_t>(changed_begin_, sequence);
  changed_end_ = std::max<int64_t>(changed_end_, sequence + 1);
}

int32_t KvCache::open() {
  CHECK(!free_rows_.empty(), "as many sequences are open as the cache has rows");
  const int32_t sequence = free_rows_.back();
  free_rows_.pop_back();
  rows_[static_cast<size_t>(sequence)] = {.open = true, .length = 0};
  return sequence;
}

int32_t KvCache::open(std::span<const int32_t> full_pages) {
  CHECK(static_cast<int64_t>(full_pages.size()) * page_tokens() <= context());
  const int32_t sequence = open();
  for (size_t i = 0; i < full_pages.size(); ++i) {
    pool_.retain(full_pages[i]);
    set_entry(sequence, static_cast<int64_t>(i), full_pages[i]);
  }
  rows_[static_cast<size_t>(sequence)].length =
      static_cast<int64_t>(full_pages.size()) * page_tokens();
  return sequence;
}

int32_t KvCache::fork(int32_t sequence) {
  const int64_t length = row(sequence).length;
  const int32_t copy = open();
  const auto pages = pages_of(sequence);
  for (size_t i = 0; i < pages.size(); ++i) {
    if (pages[i] == ops::kNoPage) continue;
    pool_.retain(pages[i]);
    set_entry(copy, static_cast<int64_t>(i), pages[i]);
  }
  rows_[static_cast<size_t>(copy)].length = length;
  return copy;
}

void KvCache::close(int32_t sequence) {
  CHECK(truncate(sequence, 0));
  rows_[static_cast<size_t>(sequence)].open = false;
  free_rows_.push_back(sequence);
}

std::span<const int32_t> KvCache::pages_of(int32_t sequence) const {
  return {entries(sequence), static_cast<size_t>(pages_for(row(sequence).length))};
}

bool KvCache::next_page_is_shared(int32_t sequence) const {
  const int64_t length = row(sequence).length;
  return length % page_tokens() != 0 && pool_.owners(entries(sequence)[length / page_tokens()]) > 1;
}

int64_t KvCache::pages_to_extend(int32_t sequence, int64_t tokens, int64_t first) const {
  const int64_t length = row(sequence).length;
  if (tokens == length) return 0;
  int64_t needed = pages_for(tokens) - pages_for(length);
  if (next_page_is_shared(sequence)) ++needed;
  for (int64_t i = 0; i < first_seen(first) / page_tokens(); ++i) {
    const int32_t page = entries(sequence)[i];
    if (page != ops::kNoPage && pool_.owners(page) == 1) --needed;
  }
  return std::max<int64_t>(needed, 0);
}

bool KvCache::extend(int32_t sequence, int64_t tokens, int64_t first) {
  const int64_t length = row(sequence).length;
  CHECK(tokens >= length && tokens <= context() && first >= 0 && first <= length);
  if (tokens == length) return true;
  if (pages_to_extend(sequence, tokens, first) > free_pages()) return false;
  for (int64_t i = 0; i < first_seen(first) / page_tokens(); ++i) {
    const int32_t page = entries(sequence)[i];
    if (page == ops::kNoPage) continue;
    pool_.release(page);
    set_entry(sequence, i, ops::kNoPage);
  }
  if (next_page_is_shared(sequence)) {
    const int64_t index = length / page_tokens();
    const int32_t shared = entries(sequence)[index], own = pool_.allocate();
    const ops::CopyPage copy{
        .pages = pages_.reshape({2 * layers_, pages(), pages_.numel() / (2 * layers_ * pages())}),
        .from = shared,
        .to = own};
    check(copy);
    backend_.run(copy);
    pool_.release(shared);
    set_entry(sequence, index, own);
  }
  for (int64_t i = pages_for(length); i < pages_for(tokens); ++i)
    set_entry(sequence, i, pool_.allocate());
  rows_[static_cast<size_t>(sequence)].length = tokens;
  return true;
}

bool KvCache::truncate(int32_t sequence, int64_t tokens) {
  const int64_t length = row(sequence).length;
  CHECK(tokens >= 0 && tokens <= length);
  const int32_t* all = entries(sequence);
  for (int64_t i = first_seen(tokens) / page_tokens(); i < pages_for(tokens); ++i)
    if (all[i] == ops::kNoPage) return false;
  for (int64_t i = pages_for(tokens); i < pages_for(length); ++i) {
    if (all[i] == ops::kNoPage) continue;
    pool_.release(all[i]);
    set_entry(sequence, i, ops::kNoPage);
  }
  rows_[static_cast<size_t>(sequence)].length = tokens;
  return true;
}

void KvCache::upload() {
  if (changed_begin_ == changed_end_) return;
  const Tensor host = Tensor(table_.data(), device_table_.shape(), Dtype::i32);
  backend_.upload(host.slice(changed_begin_, changed_end_),
                  device_table_.slice(changed_begin_, changed_end_));
  changed_begin_ = changed_end_ = 0;
}

Shape KvCache::page_shape() const {
  const Shape& all = pages_.shape();
  return {2 * layers_, all[1], all[2], all[3]};
}

void KvCache::read_page(int32_t page, const Tensor& host) const {
  CHECK(host.shape() == page_shape() && host.dtype() == dtype());
  for (int64_t i = 0; i < 2 * layers_; ++i)
    backend_.download(pages_.slice(i * pages() + page, i * pages() + page + 1),
                      host.slice(i, i + 1));
}

void KvCache::write_page(int32_t page, const Tensor& host) {
  CHECK(host.shape() == page_shape() && host.dtype() == dtype());
  for (int64_t i = 0; i < 2 * layers_; ++i)
    backend_.upload(host.slice(i, i + 1), pages_.slice(i * pages() + page, i * pages() + page + 1));
}

ops::KvView KvCache::layer(int64_t i) const {
  const int64_t n = pages();
  return {.keys = pages_.slice(2 * i * n, (2 * i + 1) * n),
          .values = pages_.slice((2 * i + 1) * n, (2 * i + 2) * n),
          .table = device_table_,
          .type = options_.type};
}

}  // namespace mixtral
