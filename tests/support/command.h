#pragma once

#include <gtest/gtest.h>

#include <cstdio>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "cli/common.h"

namespace mixtral {

/// What a command line did.
struct Outcome {
  int code = 0;
  std::string out, err;
};

/// Runs the program's command line with this process's own standard streams; its exit code.
inline int run_command_here(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "mixtral");
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  return run_command_line(static_cast<int>(argv.size()) - 1, argv.data());
}

/// Runs the program's command line in this process: {"generate", "--model", ..}.
inline Outcome run_command(const std::vector<std::string>& arguments,
                           const std::string& input = "") {
  std::istringstream in(input);
  std::streambuf* const before = std::cin.rdbuf(in.rdbuf());
  std::cin.clear();
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  Outcome outcome;
  outcome.code = run_command_here(arguments);
  std::fflush(nullptr);
  outcome.out = ::testing::internal::GetCapturedStdout();
  outcome.err = ::testing::internal::GetCapturedStderr();
  std::cin.rdbuf(before);
  return outcome;
}

}  // namespace mixtral
