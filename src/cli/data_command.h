#pragma once

#include <string_view>

#include "cli/command_line.h"

namespace mixtral {

/// `mixtral data`: makes, imports and checks data.
void add_data_command(cli::App& app);
// Its parts.
void add_data_stories(cli::App& parent);
void add_data_import(cli::App& parent);
void add_data_check(cli::App& parent);

/// Prints to standard output. Throws Error when that cannot be written.
void put(std::string_view text);

/// A line on the terminal that is overwritten; nothing elsewhere.
class ProgressLine {
 public:
  explicit ProgressLine(bool quiet);
  ~ProgressLine();
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;
  void show(std::string_view what, double share);

 private:
  bool shown_, used_ = false;
};

}  // namespace mixtral
