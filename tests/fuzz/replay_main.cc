// Runs a fuzz target over a committed corpus, and over mutations of it that are the same every
// time, where no fuzzer is at hand: PROGRAM FILE_OR_DIRECTORY...
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/random.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

namespace fs = std::filesystem;

constexpr int kMutations = 300;        // of each file
constexpr size_t kMostPrefixes = 512;  // of each file

void run(const std::string& input) {
  // A copy of exactly this size, so that a sanitizer sees any step past its end.
  const std::vector<uint8_t> bytes(input.begin(), input.end());
  LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
}

std::string mutate(std::string text, mixtral::RandomStream& random) {
  for (uint64_t edits = 1 + random.below(4); edits > 0; --edits) {
    const size_t place = random.below(text.size() + 1);
    switch (random.below(4)) {
      case 0:  // change a byte
        if (place < text.size()) text[place] = static_cast<char>(random.below(256));
        break;
      case 1:  // drop some
        text.erase(place, 1 + random.below(8));
        break;
      case 2:  // put some in
        text.insert(place, 1 + random.below(8), static_cast<char>(random.below(256)));
        break;
      default:  // repeat a piece
        text.insert(place, text.substr(random.below(text.size() + 1), random.below(64)));
    }
  }
  return text;
}

void replay(const fs::path& path, size_t& inputs) {
  const std::string text = mixtral::read_file(path);
  std::string stage = "itself";
  try {
    run(text);
    ++inputs;
    for (size_t length = 0; length < std::min(text.size(), kMostPrefixes); ++length, ++inputs) {
      stage = "its first " + std::to_string(length) + " bytes";
      run(text.substr(0, length));
    }
    mixtral::RandomStream random(1);
    for (int i = 0; i < kMutations; ++i, ++inputs) {
      stage = "mutation " + std::to_string(i) + " of seed 1";
      run(mutate(text, random));
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s: %s\n", path.c_str(), stage.c_str(), error.what());
    throw;
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<fs::path> files;
  for (int i = 1; i < argc; ++i) {
    if (fs::is_directory(argv[i])) {
      for (const auto& entry : fs::directory_iterator(argv[i]))
        if (entry.is_regular_file()) files.push_back(entry.path());
    } else {
      files.emplace_back(argv[i]);
    }
  }
  std::ranges::sort(files);
  if (files.empty()) {
    std::fprintf(stderr, "the corpus is empty\n");
    return 1;
  }
  size_t inputs = 0;
  try {
    for (const auto& path : files) replay(path, inputs);
  } catch (const std::exception&) {
    return 1;
  }
  std::printf("%zu files, %zu inputs\n", files.size(), inputs);
  return 0;
}
