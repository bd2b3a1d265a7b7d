#pragma once

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "backends/registry.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "model/batch.h"
#include "tests/support/source_directory.h"

namespace mixtral::testing {

/// Reference results of that name: tests/fixtures has some; more are beside the repository
/// (docs/architecture.md, "Tests"), absent on most machines.
inline std::filesystem::path fixture(const std::string& name) {
  const std::filesystem::path source = source_directory();
  const std::filesystem::path own = source / "tests" / "fixtures" / name;
  return std::filesystem::exists(own) ? own : source / ".." / "shared" / "fixtures" / name;
}
inline bool have_fixture(const std::string& name) { return std::filesystem::exists(fixture(name)); }

/// The devices of this build that results are compared on.
inline std::vector<std::string> devices() {
  std::vector<std::string> names{"ref", "cpu"};
  const auto built = backend_names();
  if (std::find(built.begin(), built.end(), "cuda") != built.end()) names.emplace_back("cuda");
  return names;
}
/// Whether this machine has the device.
inline bool have_device(const std::string& name) {
  return name != "cuda" || make_backend("auto")->name() != "cpu";
}

/// The rows of a data.jsonl of {"input_ids", "labels"}, as one batch.
inline HostBatch read_batch(const std::filesystem::path& file) {
  HostBatch batch;
  std::ifstream in(file);
  std::string line;
  auto ids = [](const Json& json) {
    std::vector<int32_t> values;
    for (const Json& item : json.items()) values.push_back(static_cast<int32_t>(item.as_int()));
    return values;
  };
  while (std::getline(in, line)) {
    const Json row = Json::parse(line, file.string());
    const auto tokens = ids(row.at("input_ids"));
    const Json* labels = row.find("labels");
    batch.append(tokens, labels ? ids(*labels) : std::vector<int32_t>());
  }
  return batch;
}

/// A tensor of a reference file, as doubles.
inline std::vector<double> read_values(const SafetensorsFile& file, const std::string& name) {
  const SafetensorsEntry& entry = file.at(name);
  std::vector<double> values(static_cast<size_t>(entry.numel()));
  if (values.empty()) return values;
  if (entry.dims.size() > 4) throw Error(name + " has more than four dimensions");
  Shape shape;
  switch (entry.dims.size()) {
    case 1:
      shape = {entry.dims[0]};
      break;
    case 2:
      shape = {entry.dims[0], entry.dims[1]};
      break;
    case 3:
      shape = {entry.dims[0], entry.dims[1], entry.dims[2]};
      break;
    default:
      shape = {entry.dims[0], entry.dims[1], entry.dims[2], entry.dims[3]};
  }
  if (entry.dtype == Dtype::i32) {
    const auto integers = file.view(name).span<int32_t>();
    return {integers.begin(), integers.end()};
  }
  file.read_into(name, Tensor(values.data(), shape, Dtype::f64));
  return values;
}

/// max|a − b| / max|b|
inline double relative_error(const std::vector<double>& a, const std::vector<double>& b) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    const double d = std::abs(a[i] - b[i]);
    difference = d >= difference ? d : (d != d ? INFINITY : difference);  // a NaN is no agreement
    size = std::max(size, std::abs(b[i]));
  }
  if (a.size() != b.size()) return INFINITY;
  return size > 0 ? difference / size : difference;
}

}  // namespace mixtral::testing
