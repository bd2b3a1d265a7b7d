// Any bytes as a GGUF file: refused with an Error, or every tensor lies inside the file, has the
// size of its shape and overlaps no other, and every key can be asked for.
#include <cstdint>
#include <span>

#include "base/error.h"
#include "io/gguf.h"

namespace {

/// Whether there is an answer; otherwise it is refused.
template <class Ask>
bool ask(const Ask& what) {
  try {
    what();
    return true;
  } catch (const mixtral::Error&) {
    return false;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = std::as_bytes(std::span(data, size));
  ask([&] {
    const auto header = mixtral::GgufHeader::parse(file, "fuzz");
    CHECK(header.data_begin() <= size);
    uint64_t position = 0;
    for (const auto& entry : header.entries()) {
      CHECK(entry.begin >= position && entry.begin <= entry.end);
      position = entry.end;
      CHECK(position <= size - header.data_begin());
      CHECK(entry.numel() > 0);
      CHECK(static_cast<uint64_t>(entry.numel() / entry.stored->block * entry.stored->bytes) ==
            entry.end - entry.begin);
    }
    for (const auto& [key, value] : header.values()) {
      ask([&] { header.integer(key); });
      ask([&] { header.number(key); });
      ask([&] { header.text(key); });
      ask([&] { header.texts(key); });
      ask([&] { header.floats(key); });
      ask([&] { header.integers(key); });
    }
  });
  return 0;
}
