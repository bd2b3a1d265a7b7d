// Any bytes as a safetensors file: refused with an Error, or every tensor lies inside the file and
// has the size of its shape.
#include <cstdint>
#include <span>

#include "base/error.h"
#include "io/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = std::as_bytes(std::span(data, size));
  try {
    const auto header = mixtral::SafetensorsHeader::parse(file, "fuzz");
    CHECK(header.data_begin <= size);
    uint64_t position = 0;
    for (const auto& entry : header.entries) {
      CHECK(entry.begin == position && entry.begin <= entry.end);
      position = entry.end;
      CHECK(position <= size - header.data_begin);
      CHECK(entry.numel() >= 0);
      if (entry.dtype)
        CHECK(static_cast<uint64_t>(entry.numel() * mixtral::size_of(*entry.dtype)) ==
              entry.bytes());
    }
    CHECK(position == size - header.data_begin);
  } catch (const mixtral::Error&) {
    return 0;  // refused
  }
  return 0;
}
