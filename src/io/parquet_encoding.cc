#include "io/parquet_encoding.h"

#include <array>
#include <bit>
#include <cstring>
#include <utility>

namespace mixtral {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr std::string_view kCutOff = "a page ends before its values do; the file is damaged";

std::string_view take(std::string_view& bytes, uint64_t count, const ParquetPlace& place) {
  if (count > bytes.size()) place.fail(kCutOff);
  const std::string_view taken = bytes.substr(0, count);
  bytes.remove_prefix(count);
  return taken;
}

/// A number of `size` bytes.
uint64_t take_number(std::string_view& bytes, size_t size, const ParquetPlace& place) {
  uint64_t value = 0;
  std::memcpy(&value, take(bytes, size, place).data(), size);
  return value;
}

/// Bytes of a type's value; 0 where values differ, or are no whole bytes.
size_t size_of(ParquetType type) {
  switch (type) {
    case ParquetType::int32:
    case ParquetType::float32:
      return 4;
    case ParquetType::int64:
    case ParquetType::float64:
      return 8;
    default:
      return 0;
  }
}

ParquetValue take_plain(std::string_view& bytes, ParquetType type, const ParquetPlace& place) {
  if (type == ParquetType::text)
    return {.text = take(bytes, take_number(bytes, sizeof(uint32_t), place), place)};
  return {.bits = take_number(bytes, size_of(type), place)};
}

/// Of a page that has nulls only.
class NoValues : public ValueDecoder {
 public:
  explicit NoValues(const ParquetPlace& place) : place_(place) {}
  ParquetValue next() override { place_.fail(kCutOff); }

 private:
  const ParquetPlace& place_;
};

class Plain : public ValueDecoder {
 public:
  Plain(const EncodedValues& values, const ParquetPlace& place)
      : bytes_(values.bytes), type_(values.type), place_(place) {}
  ParquetValue next() override { return take_plain(bytes_, type_, place_); }

 private:
  std::string_view bytes_;
  ParquetType type_;
  const ParquetPlace& place_;
};

/// Truth values, a bit each.
class PlainBooleans : public ValueDecoder {
 public:
  PlainBooleans(const EncodedValues& values, const ParquetPlace& place)
      : bytes_(values.bytes), place_(place) {}
  ParquetValue next() override {
    if (bit_ / 8 == bytes_.size()) place_.fail(kCutOff);
    const auto byte = static_cast<uint8_t>(bytes_[bit_ / 8]);
    return {.bits = byte >> bit_++ % 8 & 1U};
  }

 private:
  std::string_view bytes_;
  uint64_t bit_ = 0;
  const ParquetPlace& place_;
};

/// Truth values as run lengths, behind four bytes of their size.
class RunBooleans : public ValueDecoder {
 public:
  RunBooleans(const EncodedValues& values, const ParquetPlace& place) {
    std::string_view bytes = values.bytes;
    const uint64_t size = take_number(bytes, sizeof(uint32_t), place);
    runs_ = RunReader(take(bytes, size, place), 1, place);
  }
  ParquetValue next() override { return {.bits = runs_.next()}; }

 private:
  RunReader runs_;
};

/// Indices into a dictionary, behind a byte of their width.
class Indexed : public ValueDecoder {
 public:
  Indexed(const EncodedValues& values, const ParquetPlace& place)
      : dictionary_(*values.dictionary), place_(place) {
    std::string_view bytes = values.bytes;
    const uint64_t width = take_number(bytes, 1, place);
    if (width > 32) place.fail(fmt::format("indices have {} bits; the file is damaged", width));
    indices_ = RunReader(bytes, static_cast<int>(width), place);
  }
  ParquetValue next() override {
    const uint32_t index = indices_.next();
    if (index >= dictionary_.values().size())
      place_.fail(fmt::format("value {} of a dictionary of {} is used; the file is damaged", index,
                              dictionary_.values().size()));
    return dictionary_.values()[index];
  }

 private:
  const ParquetDictionary& dictionary_;
  const ParquetPlace& place_;
  RunReader indices_;
};

class Differences : public ValueDecoder {
 public:
  Differences(const EncodedValues& values, const ParquetPlace& place)
      : numbers_(values.bytes, values.most, place) {}
  ParquetValue next() override { return {.bits = static_cast<uint64_t>(numbers_.next())}; }

 private:
  DeltaReader numbers_;
};

/// Texts whose lengths come first.
class LengthsFirst : public ValueDecoder {
 public:
  LengthsFirst(const EncodedValues& values, const ParquetPlace& place)
      : lengths_(values.bytes, values.most, place), bytes_(lengths_.rest()), place_(place) {}
  ParquetValue next() override {
    // A negative length becomes one that no page has.
    return {.text = take(bytes_, static_cast<uint64_t>(lengths_.next()), place_)};
  }

 private:
  DeltaReader lengths_;
  std::string_view bytes_;
  const ParquetPlace& place_;
};

/// Texts that each begin as the one before, so far as a first list of lengths says.
class SharedPrefixes : public ValueDecoder {
 public:
  SharedPrefixes(const EncodedValues& values, const ParquetPlace& place)
      : prefixes_(values.bytes, values.most, place),
        suffixes_({.bytes = prefixes_.rest(), .most = values.most}, place),
        place_(place) {}
  ParquetValue next() override {
    const auto shared = static_cast<uint64_t>(prefixes_.next());
    if (shared > value_.size())
      place_.fail(fmt::format("a text shares {} bytes with one of {}; the file is damaged", shared,
                              value_.size()));
    value_.resize(shared);
    value_ += suffixes_.next().text;
    return {.text = value_};
  }

 private:
  DeltaReader prefixes_;
  LengthsFirst suffixes_;
  std::string value_;
  const ParquetPlace& place_;
};

/// Numbers whose first bytes come first, then their second bytes, and so on.
class SplitBytes : public ValueDecoder {
 public:
  SplitBytes(const EncodedValues& values, const ParquetPlace& place)
      : bytes_(values.bytes),
        size_(size_of(values.type)),
        count_(bytes_.size() / size_),
        place_(place) {}
  ParquetValue next() override {
    if (at_ == count_) place_.fail(kCutOff);
    uint64_t bits = 0;
    for (size_t i = 0; i < size_; ++i)
      bits |= uint64_t{static_cast<uint8_t>(bytes_[i * count_ + at_])} << 8 * i;
    ++at_;
    return {.bits = bits};
  }

 private:
  std::string_view bytes_;
  size_t size_, count_, at_ = 0;
  const ParquetPlace& place_;
};

std::string encoding_name(int64_t encoding) {
  constexpr std::array<std::string_view, 10> kNames = {
      "PLAIN",          "GROUP_VAR_INT",       "PLAIN_DICTIONARY",        "RLE",
      "BIT_PACKED",     "DELTA_BINARY_PACKED", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY",
      "RLE_DICTIONARY", "BYTE_STREAM_SPLIT"};
  if (static_cast<uint64_t>(encoding) >= kNames.size()) return fmt::format("number {}", encoding);
  return std::string(kNames[static_cast<size_t>(encoding)]);
}

}  // namespace

ParquetDictionary::ParquetDictionary(std::string page, uint64_t count, ParquetType type,
                                     const ParquetPlace& place)
    : page_(std::move(page)) {
  const bool is_text = type == ParquetType::text;
  const size_t least = is_text ? sizeof(uint32_t) : size_of(type);
  if (least == 0) place.fail("has a dictionary of values that are no texts or numbers");
  if (count > page_.size() / least)
    place.fail(fmt::format("a dictionary of {} bytes cannot hold {} values; the file is damaged",
                           page_.size(), count));
  values_.reserve(count);
  std::string_view bytes = page_;
  for (uint64_t i = 0; i < count; ++i) values_.push_back(take_plain(bytes, type, place));
}

std::unique_ptr<ValueDecoder> make_decoder(const EncodedValues& values, const ParquetPlace& place) {
  if (values.bytes.empty()) return std::make_unique<NoValues>(place);
  const bool is_boolean = values.type == ParquetType::boolean,
             is_text = values.type == ParquetType::text,
             is_integer = values.type == ParquetType::int32 || values.type == ParquetType::int64;
  // A number that is no encoding's may not become one by the conversion.
  const auto encoding = values.encoding >= 0 && values.encoding <= 255
                            ? static_cast<ParquetEncoding>(values.encoding)
                            : ParquetEncoding::bit_packed;
  switch (encoding) {
    case ParquetEncoding::plain:
      if (is_boolean) return std::make_unique<PlainBooleans>(values, place);
      return std::make_unique<Plain>(values, place);
    case ParquetEncoding::plain_dictionary:
    case ParquetEncoding::dictionary:
      if (values.dictionary == nullptr)
        place.fail("a page uses a dictionary, which is missing; the file is damaged");
      return std::make_unique<Indexed>(values, place);
    case ParquetEncoding::runs:
      if (is_boolean) return std::make_unique<RunBooleans>(values, place);
      break;
    case ParquetEncoding::delta_binary_packed:
      if (is_integer) return std::make_unique<Differences>(values, place);
      break;
    case ParquetEncoding::delta_length_byte_array:
      if (is_text) return std::make_unique<LengthsFirst>(values, place);
      break;
    case ParquetEncoding::delta_byte_array:
      if (is_text) return std::make_unique<SharedPrefixes>(values, place);
      break;
    case ParquetEncoding::byte_stream_split:
      if (!is_text && !is_boolean) return std::make_unique<SplitBytes>(values, place);
      break;
    default:
      break;
  }
  place.fail(
      fmt::format("a page of such values is in the encoding {}, which is not read here; "
                  "write the file again with the encodings PLAIN or RLE_DICTIONARY",
                  encoding_name(values.encoding)));
}

}  // namespace mixtral
