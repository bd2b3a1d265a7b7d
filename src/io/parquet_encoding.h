#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "io/parquet_place.h"

namespace mixtral {

/// Types of a column's values, with their numbers in a file.
enum class ParquetType : uint8_t {
  boolean = 0,
  int32 = 1,
  int64 = 2,
  int96 = 3,
  float32 = 4,
  float64 = 5,
  text = 6,
  fixed_bytes = 7,
};

/// A value: the bytes of a text, which stay where the page is; or the bits of any other type, of
/// which a 32-bit number fills the lower half.
struct ParquetValue {
  std::string_view text;
  uint64_t bits = 0;
};

/// Reads Parquet's hybrid of run lengths and packed bits
/// (https://parquet.apache.org/docs/file-format/data-pages/encodings), one number at a time, so
/// that nothing is allocated for a count that a file gives.
class RunReader {
 public:
  RunReader() = default;
  /// `width` is the number of bits of a number, at most 32. The place must outlive this.
  RunReader(std::string_view bytes, int width, const ParquetPlace& place)
      : bytes_(bytes), place_(&place), width_(width) {}

  /// Throws Error at the end of the bytes.
  uint32_t next();

 private:
  void start_run();

  std::string_view bytes_, packed_;
  const ParquetPlace* place_ = nullptr;
  int width_ = 0;
  uint64_t left_ = 0, bit_ = 0;
  bool is_packed_ = false;
  uint32_t repeated_ = 0;
};

/// Reads numbers in the encoding DELTA_BINARY_PACKED.
class DeltaReader {
 public:
  DeltaReader() = default;
  /// Reads the header. Throws Error when there would be more than `most` numbers.
  DeltaReader(std::string_view bytes, uint64_t most, const ParquetPlace& place);

  /// Throws Error behind the last number.
  int64_t next();
  /// The bytes behind the numbers.
  std::string_view rest() const;

 private:
  void start_part();

  std::string_view bytes_, widths_, packed_;
  const ParquetPlace* place_ = nullptr;
  uint64_t part_size_ = 0, parts_ = 0, next_part_ = 0;  // parts are the format's miniblocks
  uint64_t count_ = 0, left_ = 0, left_in_part_ = 0, bit_ = 0, least_ = 0, value_ = 0;
  int width_ = 0;
};

/// The values of a dictionary page.
class ParquetDictionary {
 public:
  /// `page` is decompressed. Throws Error unless it holds that many values.
  ParquetDictionary(std::string page, uint64_t count, ParquetType type, const ParquetPlace& place);
  ParquetDictionary(const ParquetDictionary&) = delete;  // its values point into its page
  ParquetDictionary& operator=(const ParquetDictionary&) = delete;

  const std::vector<ParquetValue>& values() const { return values_; }

 private:
  std::string page_;
  std::vector<ParquetValue> values_;
};

/// Gives the values of a data page, one by one.
class ValueDecoder {
 public:
  virtual ~ValueDecoder() = default;
  /// Throws Error when the page's bytes do not hold another one. A text stays valid until the next
  /// call.
  virtual ParquetValue next() = 0;
};

/// Encodings of values, with their numbers in a file.
enum class ParquetEncoding : uint8_t {
  plain = 0,
  plain_dictionary = 2,
  runs = 3,
  bit_packed = 4,
  delta_binary_packed = 5,
  delta_length_byte_array = 6,
  delta_byte_array = 7,
  dictionary = 8,
  byte_stream_split = 9,
};

/// What a page's values are in.
struct EncodedValues {
  std::string_view bytes;
  int64_t encoding = 0;  // of ParquetEncoding, or a number that is none of them
  ParquetType type = ParquetType::text;
  uint64_t most = 0;  // values that there can be
  const ParquetDictionary* dictionary = nullptr;
};

/// Throws Error naming the encoding where it is not one that is read for the type, and where a
/// dictionary is missing. Bytes, dictionary and place must outlive the decoder.
std::unique_ptr<ValueDecoder> make_decoder(const EncodedValues& values, const ParquetPlace& place);

}  // namespace mixtral
