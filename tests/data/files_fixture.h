#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "base/threads.h"

namespace mixtral {

/// Gives each test an empty folder, and threads to read files with.
class Files : public ::testing::Test {
 protected:
  Files()
      : root_(std::filesystem::temp_directory_path() /
              ("data_test_" + std::to_string(::getpid()))) {
    std::filesystem::create_directories(root_);
  }
  ~Files() override { std::filesystem::remove_all(root_); }
  const std::filesystem::path root_;
  ThreadPool pool_{2};
};

}  // namespace mixtral
