#include "io/checksum.h"

#include <fmt/format.h>
#include <xxhash.h>

#include "base/error.h"
#include "base/file.h"

namespace mixtral {

struct Checksummer::State {
  XXH3_state_t* xxh3 = XXH3_createState();
  uint64_t bytes = 0;

  State() { CHECK(xxh3 && XXH3_64bits_reset(xxh3) == XXH_OK); }
  ~State() { XXH3_freeState(xxh3); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
};

Checksummer::Checksummer() : state_(std::make_unique<State>()) {}
Checksummer::~Checksummer() = default;

void Checksummer::update(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  CHECK(XXH3_64bits_update(state_->xxh3, bytes.data(), bytes.size()) == XXH_OK);
  state_->bytes += bytes.size();
}

FileChecksum Checksummer::result() const {
  return {state_->bytes, XXH3_64bits_digest(state_->xxh3)};
}

std::string FileChecksum::hex() const { return fmt::format("{:016x}", xxh3); }

FileChecksum checksum(std::span<const std::byte> bytes) {
  Checksummer sum;
  sum.update(bytes);
  return sum.result();
}

FileChecksum checksum_file(const std::filesystem::path& path) {
  const MappedFile file(path);
  return checksum(file.bytes());
}

}  // namespace mixtral
