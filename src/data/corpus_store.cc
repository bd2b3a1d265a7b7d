// How a Corpus keeps its tokens, in memory and on disk.
#include <algorithm>
#include <cstring>
#include <limits>
#include <span>

#include "base/error.h"
#include "base/file.h"
#include "data/corpus.h"
#include "io/checksum.h"
#include "ops/vocab.h"

namespace mixtral {
namespace {

constexpr int64_t kNarrowLimit = 1 << 16;

/// The cache file: this header, then the arrays one after another, then a checksum of all of it.
/// Numbers are in the machine's byte order, for the file never leaves the machine.
struct CacheHeader {
  char magic[8] = {'m', 'x', 't', 'o', 'k', 'e', 'n', '2'};
  uint64_t key = 0;
  int64_t narrow = 0, wide = 0, labels = 0, starts = 0, paired = 0;
  CorpusCounts counts;
};

template <class T>
void write_array(AtomicFile& file, Checksummer& sum, std::span<const T> values) {
  file.write(std::as_bytes(values));
  sum.update(std::as_bytes(values));
}

template <class T>
bool read_array(std::span<const std::byte>& bytes, int64_t count, std::vector<T>& values) {
  if (count < 0 || static_cast<uint64_t>(count) > bytes.size() / sizeof(T)) return false;
  values.resize(static_cast<size_t>(count));
  const size_t size = values.size() * sizeof(T);
  if (size > 0) std::memcpy(values.data(), bytes.data(), size);
  bytes = bytes.subspan(size);
  return true;
}

}  // namespace

void Corpus::widen() {
  wide_.assign(narrow_.begin(), narrow_.end());
  narrow_.clear();
  narrow_.shrink_to_fit();
}

void Corpus::add(const Example& example) {
  CHECK(!example.tokens.empty() && example.tokens.size() == example.labels.size());
  const bool needs_wide = std::any_of(example.tokens.begin(), example.tokens.end(),
                                      [](int32_t id) { return id >= kNarrowLimit; });
  if (needs_wide && wide_.empty()) widen();
  const bool differs = example.labels != example.tokens;
  if (differs && labels_.empty()) {
    labels_.reserve(static_cast<size_t>(tokens()) + example.tokens.size());
    for (int64_t i = 0; i < tokens(); ++i) labels_.push_back(token(i));
  }
  if (differs || !labels_.empty()) {
    labels_.insert(labels_.end(), example.labels.begin(), example.labels.end());
  }
  if (wide_.empty()) {
    for (int32_t id : example.tokens) narrow_.push_back(static_cast<uint16_t>(id));
  } else {
    wide_.insert(wide_.end(), example.tokens.begin(), example.tokens.end());
  }
  starts_.push_back(starts_.back() + static_cast<int64_t>(example.tokens.size()));
  counts_.tokens = tokens();
  counts_.longest = std::max(counts_.longest, static_cast<int64_t>(example.tokens.size()));
  counts_.label_tokens += std::count_if(example.labels.begin() + 1, example.labels.end(),
                                        [](int32_t label) { return label != ops::kIgnoredLabel; });
}

int32_t Corpus::label(int64_t i) const {
  return labels_.empty() ? token(i) : labels_[static_cast<size_t>(i)];
}

bool Corpus::has_label(int64_t begin, int64_t end) const {
  if (labels_.empty()) return begin < end;
  return std::any_of(labels_.begin() + begin, labels_.begin() + end,
                     [](int32_t label) { return label != ops::kIgnoredLabel; });
}

void Corpus::save(const std::filesystem::path& path, uint64_t key) const {
  CacheHeader header;
  header.key = key;
  header.narrow = static_cast<int64_t>(narrow_.size());
  header.wide = static_cast<int64_t>(wide_.size());
  header.labels = static_cast<int64_t>(labels_.size());
  header.starts = static_cast<int64_t>(starts_.size());
  header.paired = paired_;
  header.counts = counts_;
  AtomicFile file(path);
  Checksummer sum;
  write_array(file, sum, std::span<const CacheHeader>(&header, 1));
  write_array(file, sum, std::span<const uint16_t>(narrow_));
  write_array(file, sum, std::span<const int32_t>(wide_));
  write_array(file, sum, std::span<const int32_t>(labels_));
  write_array(file, sum, std::span<const int64_t>(starts_));
  const uint64_t total = sum.result().xxh3;
  file.write(std::as_bytes(std::span(&total, 1)));
  file.commit();
}

bool Corpus::load(const std::filesystem::path& path, uint64_t key) {
  if (!std::filesystem::exists(path)) return false;
  const MappedFile file(path);
  std::span<const std::byte> bytes = file.bytes();
  CacheHeader header, expected;
  uint64_t total = 0;
  if (bytes.size() < sizeof(header) + sizeof(total)) return false;
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (std::memcmp(header.magic, expected.magic, sizeof(header.magic)) != 0 || header.key != key) {
    return false;
  }
  std::memcpy(&total, bytes.data() + bytes.size() - sizeof(total), sizeof(total));
  bytes = bytes.first(bytes.size() - sizeof(total));
  if (checksum(bytes).xxh3 != total) return false;
  bytes = bytes.subspan(sizeof(header));
  Corpus loaded;
  if (!read_array(bytes, header.narrow, loaded.narrow_) ||
      !read_array(bytes, header.wide, loaded.wide_) ||
      !read_array(bytes, header.labels, loaded.labels_) ||
      !read_array(bytes, header.starts, loaded.starts_) || !bytes.empty()) {
    return false;
  }
  const int64_t tokens = header.narrow + header.wide;
  if (loaded.starts_.empty() || loaded.starts_.back() != tokens ||
      (header.labels != 0 && header.labels != tokens)) {
    return false;
  }
  loaded.paired_ = header.paired != 0;
  loaded.counts_ = header.counts;
  *this = std::move(loaded);
  return true;
}

}  // namespace mixtral
