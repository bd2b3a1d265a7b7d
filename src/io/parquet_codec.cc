#include "io/parquet_codec.h"

#include <snappy.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>

namespace mixtral {
namespace {

constexpr uint64_t kLargestPage = uint64_t{1} << 30;
constexpr uint64_t kModestPage = uint64_t{64} << 20;
constexpr uint64_t kMostExpansion = 1100;  // above deflate's most, 1032

constexpr int kGzipOrZlib = 32 + MAX_WBITS;

void damaged(std::string_view codec, const ParquetPlace& place) {
  place.fail(
      fmt::format("a page is no valid {} data of the size that its header gives; the file "
                  "is damaged",
                  codec));
}

bool inflate_page(std::string_view page, std::string& bytes) {
  z_stream stream{};
  if (inflateInit2(&stream, kGzipOrZlib) != Z_OK) return false;
  // zlib promises not to write to its input.
  stream.next_in = const_cast<Bytef*>(reinterpret_cast<const Bytef*>(page.data()));
  stream.avail_in = static_cast<uInt>(page.size());
  stream.next_out = reinterpret_cast<Bytef*>(bytes.data());
  stream.avail_out = static_cast<uInt>(bytes.size());
  // A page may be several members of gzip, one after another.
  int status = Z_OK;
  while (status == Z_OK) {
    status = inflate(&stream, Z_FINISH);
    if (status == Z_STREAM_END && stream.avail_in > 0 && stream.avail_out > 0)
      status = inflateReset(&stream);
  }
  const bool whole = status == Z_STREAM_END && stream.avail_in == 0 && stream.avail_out == 0;
  inflateEnd(&stream);
  return whole;
}

}  // namespace

void check_codec(int64_t codec, const ParquetPlace& place) {
  switch (codec) {
    case static_cast<int64_t>(ParquetCodec::none):
    case static_cast<int64_t>(ParquetCodec::snappy):
    case static_cast<int64_t>(ParquetCodec::gzip):
    case static_cast<int64_t>(ParquetCodec::zstd):
      return;
    default:
      break;
  }
  constexpr std::string_view kNames[] = {"none",   "Snappy",       "gzip",      "LZO",
                                         "Brotli", "LZ4 (Hadoop)", "Zstandard", "LZ4"};
  const auto known = static_cast<uint64_t>(codec) < std::size(kNames);
  place.fail(
      fmt::format("is compressed with {}, which is not read here; write the file again with "
                  "Zstandard, Snappy or gzip",
                  known ? std::string(kNames[codec]) : fmt::format("codec {}", codec)));
}

std::string decompress(ParquetCodec codec, std::string_view page, uint64_t size,
                       const ParquetPlace& place) {
  if (size > kLargestPage || (size > kModestPage && size / kMostExpansion > page.size()))
    place.fail(
        fmt::format("a page of {} bytes would be {} bytes large, more than is accepted; the "
                    "file is damaged, or made to fill the memory",
                    page.size(), size));
  if (codec == ParquetCodec::none) {
    if (page.size() != size) damaged("uncompressed", place);
    return std::string(page);
  }
  if (size == 0) return {};
  std::string bytes;
  if (codec == ParquetCodec::snappy) {
    size_t found = 0;
    if (!snappy::GetUncompressedLength(page.data(), page.size(), &found) || found != size)
      damaged("Snappy", place);
    bytes.resize(size);
    if (!snappy::RawUncompress(page.data(), page.size(), bytes.data())) damaged("Snappy", place);
  } else if (codec == ParquetCodec::zstd) {
    bytes.resize(size);
    const size_t found = ZSTD_decompress(bytes.data(), size, page.data(), page.size());
    if (ZSTD_isError(found) != 0 || found != size) damaged("Zstandard", place);
  } else {
    bytes.resize(size);
    if (!inflate_page(page, bytes)) damaged("gzip", place);
  }
  return bytes;
}

uint32_t page_checksum(std::string_view page) {
  uLong sum = crc32(0, nullptr, 0);
  constexpr size_t kStep = size_t{1} << 30;  // zlib counts in 32 bits
  for (size_t at = 0; at < page.size(); at += kStep) {
    const std::string_view part = page.substr(at, kStep);
    sum = crc32(sum, reinterpret_cast<const Bytef*>(part.data()), static_cast<uInt>(part.size()));
  }
  return static_cast<uint32_t>(sum);
}

}  // namespace mixtral
