#pragma once

#include <filesystem>

namespace mixtral {

/// A directory beside `out`, which takes its place by commit() or goes without a trace.
class PendingDirectory {
 public:
  /// `out` may end in a slash or be a link, whose target is then meant: a name has to be there for
  /// the temporary one to be beside it. Throws Error where it cannot be created.
  explicit PendingDirectory(const std::filesystem::path& out);
  ~PendingDirectory();
  PendingDirectory(const PendingDirectory&) = delete;
  PendingDirectory& operator=(const PendingDirectory&) = delete;

  const std::filesystem::path& path() const { return temporary_; }

  /// What stood under the name until now goes with the temporary one.
  void commit();
  /// Puts one of its files, instead, where `out` is or beside it, under the name that it has.
  void commit_file(const std::filesystem::path& name);

 private:
  std::filesystem::path out_, temporary_;
};

}  // namespace mixtral
