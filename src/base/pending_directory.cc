#include "base/pending_directory.h"

#include <fmt/format.h>

#include "base/error.h"
#include "base/file.h"
#include "base/temporary_name.h"

namespace mixtral {

namespace fs = std::filesystem;

PendingDirectory::PendingDirectory(const fs::path& out) : out_(fs::weakly_canonical(out)) {
  if (!out_.has_filename()) out_ = out_.parent_path();
  temporary_ = out_.parent_path() / temporary_name(out_.filename().string());
  std::error_code error;
  fs::create_directories(temporary_, error);
  if (error) throw Error(fmt::format("cannot create {}: {}", temporary_.string(), error.message()));
}

PendingDirectory::~PendingDirectory() {
  std::error_code ignored;
  fs::remove_all(temporary_, ignored);
}

void PendingDirectory::commit() {
  sync_tree(temporary_);
  put_in_place(temporary_, out_);
  sync_directory(out_.parent_path());
}

void PendingDirectory::commit_file(const fs::path& name) {
  const fs::path to = out_.parent_path() / name;
  std::error_code error;
  fs::rename(temporary_ / name, to, error);
  if (error) throw Error(fmt::format("cannot write {}: {}", to.string(), error.message()));
  sync_directory(out_.parent_path());
}

}  // namespace mixtral
