#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "io/parquet_place.h"

namespace mixtral {

/// Codecs of pages, with their numbers in a file.
enum class ParquetCodec : uint8_t {
  none = 0,
  snappy = 1,
  gzip = 2,
  lzo = 3,
  brotli = 4,
  lz4_framed = 5,
  zstd = 6,
  lz4 = 7,
};

/// Throws Error naming the codec unless it is one that decompress() knows.
void check_codec(int64_t codec, const ParquetPlace& place);

/// The bytes of a page, which must be exactly `size`. A size above 1 GiB is refused, and one of
/// more than 64 MiB that is beyond what an honest page of so many bytes comes to. Throws Error when
/// the page is damaged.
std::string decompress(ParquetCodec codec, std::string_view page, uint64_t size,
                       const ParquetPlace& place);

/// The check sum that a page may have (CRC-32 of its bytes as they are in the file).
uint32_t page_checksum(std::string_view page);

}  // namespace mixtral
