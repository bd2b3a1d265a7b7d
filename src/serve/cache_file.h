#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "serve/engine_thread.h"

namespace mixtral::serve {

/// What was written or read.
struct CacheFileReport {
  int64_t tokens = 0;  // whose keys and values there are
  uint64_t bytes = 0;  // of the file
};

/// Writes what an engine keeps of the model's own prompts into a safetensors file, which appears
/// whole or not at all. Answers go on meanwhile. `identity` (model_identity) names the model.
/// Throws Error where the disk is full or the engine keeps nothing.
CacheFileReport save_cache(EngineThread& engine, const std::string& identity,
                           const std::filesystem::path& path);

/// Puts such a file's pages back, as far as there is room. Throws Error for a file that is none, of
/// another model or version, or damaged; what was read by then stays.
CacheFileReport restore_cache(EngineThread& engine, const std::string& identity,
                              const std::filesystem::path& path);

}  // namespace mixtral::serve
