#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "io/checksum.h"
#include "tensor/tensor.h"

namespace mixtral {

/// A tensor that will be written: its name and shape, and the dtype it will have in the file.
struct PlannedTensor {
  std::string name;
  Shape shape;
  Dtype dtype = Dtype::f32;
  std::string_view type_name = {};  // as the file names it, where that is not dtype's: "U32"

  uint64_t bytes() const { return static_cast<uint64_t>(shape.numel() * size_of(dtype)); }
};

/// What transformers writes as `__metadata__`, and asks for when it reads.
std::map<std::string, std::string> default_metadata();  // {"format": "pt"}

/// Streams tensors into one safetensors file: the header is written first, from the plan, then each
/// tensor as it is handed over, so that no more than one need be in memory. The file appears under
/// its name only when finish() has synced it.
class SafetensorsWriter {
 public:
  /// Lays the tensors out in the order of the plan; where that would leave one unaligned, by
  /// descending element size. Throws Error if a name appears twice, the disk lacks the space, or
  /// the file cannot be created.
  SafetensorsWriter(std::filesystem::path path, std::vector<PlannedTensor> plan,
                    const std::map<std::string, std::string>& metadata = default_metadata());
  ~SafetensorsWriter();

  /// The tensors in the order in which write() must be called.
  const std::vector<PlannedTensor>& order() const { return plan_; }

  /// Writes the next tensor of order(): host memory of the planned shape, converted to the planned
  /// dtype. Throws Error when the disk is full or fails.
  void write(const Tensor& values);

  /// Syncs and renames the file, after the last write. Returns its checksum.
  FileChecksum finish();

 private:
  void emit(std::span<const std::byte> bytes);

  std::filesystem::path path_;
  std::vector<PlannedTensor> plan_;
  AtomicFile file_;
  Checksummer sum_;
  size_t next_ = 0;
  std::vector<std::byte> scratch_;
};

/// Gives the values of a planned tensor: host memory of its shape, in any dtype that converts.
/// Valid until the next call.
using TensorValues = std::function<Tensor(const PlannedTensor&)>;

/// Writes one safetensors file, asking `source` for each tensor in turn. Returns its checksum.
FileChecksum write_safetensors(
    const std::filesystem::path& path, std::vector<PlannedTensor> plan, const TensorValues& source,
    const std::map<std::string, std::string>& metadata = default_metadata());

/// Host tensors by name, each written in its own dtype.
FileChecksum write_safetensors(
    const std::filesystem::path& path, const std::map<std::string, Tensor>& tensors,
    const std::map<std::string, std::string>& metadata = default_metadata());

inline constexpr uint64_t kDefaultShardBytes = 5'000'000'000;  // transformers' "5GB"

/// Writes a model's tensors into `directory` as transformers does: model.safetensors, or
/// model-00001-of-000NN.safetensors, ... with model.safetensors.index.json when they exceed
/// `shard_bytes` (a larger tensor gets a shard of its own). Weight files of an earlier save under
/// other names are removed afterwards. Returns the checksum of each file written.
std::map<std::string, FileChecksum> write_model_tensors(const std::filesystem::path& directory,
                                                        const std::vector<PlannedTensor>& plan,
                                                        const TensorValues& source,
                                                        uint64_t shard_bytes = kDefaultShardBytes);

}  // namespace mixtral
