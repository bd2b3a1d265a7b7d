// Hugging Face's, MLX's and Mistral's directories: safetensors files with settings beside them.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "base/error.h"
#include "convert/conversion.h"
#include "convert/directory_settings.h"
#include "io/safetensors_writer.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

/// "X.weight" -> "X.scales".
std::string beside(const std::string& weight, std::string_view what) {
  constexpr std::string_view kEnd = "weight";
  CHECK(weight.ends_with(kEnd), weight);
  return weight.substr(0, weight.size() - kEnd.size()).append(what);
}

Shape with_count(const OutputTensor& output, Shape part) {
  if (!output.stacked) return part;
  return part.rank() == 2 ? Shape{output.count(), part[0], part[1]}
                          : Shape{output.count(), part[0]};
}

/// Gives the tensors of the files one after another. One that holds several parts is put together
/// in memory: the largest of a model is all experts of a layer.
class Assembler {
 public:
  explicit Assembler(Conversion& conversion) : conversion_(conversion) {
    for (const OutputTensor& output : conversion.outputs()) plan(output);
  }

  const std::vector<PlannedTensor>& plan() const { return plan_; }

  Tensor operator()(const PlannedTensor& planned) {
    const auto [output, piece] = place_.at(planned.name);
    if (!made_.contains(output)) make(*output);
    const Tensor values = pieces_[piece];
    conversion_.note_target(planned.name,
                            planned.type_name.empty() ? std::string(to_string(planned.dtype))
                                                      : std::string(planned.type_name),
                            dims_of(planned.shape),
                            checksum({static_cast<const std::byte*>(values.data()),
                                      static_cast<size_t>(values.bytes())}));
    return values;
  }

 private:
  static std::vector<int64_t> dims_of(const Shape& shape) {
    std::vector<int64_t> dims;
    dims.reserve(Shape::kMaxRank);
    for (int i = 0; i < shape.rank(); ++i) dims.push_back(shape[i]);
    return dims;
  }

  void add(const OutputTensor& output, size_t piece, PlannedTensor planned) {
    place_.emplace(planned.name, std::pair(&output, piece));
    plan_.push_back(std::move(planned));
  }

  void plan(const OutputTensor& output) {
    const Dtype dtype = output.type.format.row().type;
    if (!output.type.grouped()) {
      add(output, 0,
          {.name = output.name, .shape = with_count(output, output.part_shape), .dtype = dtype});
      return;
    }
    const int64_t rows = output.rows(), columns = output.columns();
    const Shape words{rows, columns * output.type.bits / 32};
    const Shape groups{rows, columns / output.type.group};
    add(output, 0,
        {.name = output.name,
         .shape = with_count(output, words),
         .dtype = Dtype::i32,
         .type_name = "U32"});
    add(output, 1,
        {.name = beside(output.name, "scales"),
         .shape = with_count(output, groups),
         .dtype = dtype});
    add(output, 2,
        {.name = beside(output.name, "biases"),
         .shape = with_count(output, groups),
         .dtype = dtype});
  }

  void make(const OutputTensor& output) {
    made_ = {&output};
    for (size_t at = 0; at < output.parts.size(); ++at) {
      const PackedPart part = conversion_.pack(output, output.parts[at]);
      const Tensor own[] = {part.codes, part.scales, part.biases};
      for (size_t i = 0; i < 3; ++i) {
        if (!own[i]) continue;
        if (!output.stacked) {
          pieces_[i] = own[i];
          continue;
        }
        const int64_t bytes = own[i].bytes(), all = bytes * output.count();
        if (at == 0) {
          if (buffers_[i].bytes() < all) {
            buffers_[i] = Buffer();
            buffers_[i] = Buffer(host_memory(), all);
          }
          pieces_[i] = buffers_[i].tensor(with_count(output, own[i].shape()), own[i].dtype());
        }
        std::memcpy(static_cast<std::byte*>(pieces_[i].data()) + static_cast<int64_t>(at) * bytes,
                    own[i].data(), static_cast<size_t>(bytes));
      }
    }
  }

  Conversion& conversion_;
  std::vector<PlannedTensor> plan_;
  std::map<std::string, std::pair<const OutputTensor*, size_t>> place_;
  std::set<const OutputTensor*> made_;  // the one whose pieces are at hand
  Tensor pieces_[3];
  Buffer buffers_[3];
};

}  // namespace

void write_directory(Conversion& conversion, const fs::path& directory) {
  Assembler assembler(conversion);
  const auto source = [&](const PlannedTensor& planned) { return assembler(planned); };
  auto& files = conversion.receipt().files;
  if (conversion.options().to == ModelFormat::mistral) {
    constexpr const char* kFile = "consolidated.safetensors";
    files[kFile] = write_safetensors(directory / kFile, assembler.plan(), source);
  } else {
    files = write_model_tensors(directory, assembler.plan(), source);
  }
  for (const std::string& name : write_settings(conversion, directory)) {
    files[name] = checksum_file(directory / name);
    conversion.receipt().companions.push_back(name);
  }
}

}  // namespace mixtral
