#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/tensor.h"

namespace mixtral {

/// One tensor of a model's files, as they describe it.
struct TensorEntry {
  std::string name;
  std::string type;            // as the file names it: "BF16", "F8_E4M3", "Q4_K"
  std::optional<Dtype> dtype;  // absent where the elements are no plain numbers of this program
  bool coded = false;          // blocks of codes and scales, which read() decodes
  std::string format;          // of a coded tensor that read_codes() gives, else empty
  std::vector<int64_t> dims;   // outermost first

  int64_t numel() const;
  std::string shape_text() const;  // "[2, 3]"
  /// Whether read() gives floating-point numbers.
  bool is_float() const { return coded || (dtype && mixtral::is_float(*dtype)); }
};

/// The tensors of a model, whatever files they are in. Reading is thread-safe.
class TensorSource {
 public:
  TensorSource() = default;
  virtual ~TensorSource() = default;
  TensorSource(const TensorSource&) = delete;
  TensorSource& operator=(const TensorSource&) = delete;

  /// What was opened: a file or a directory, for messages.
  virtual const std::filesystem::path& path() const = 0;
  /// In the order in which reading is fastest.
  virtual const std::vector<std::string>& names() const = 0;
  /// The tensor of that name, or null.
  virtual const TensorEntry* find(std::string_view name) const = 0;
  /// The file that holds a tensor, which must exist.
  virtual const std::filesystem::path& file_of(std::string_view name) const = 0;
  /// The bytes of a tensor as they stand in its file (memory-mapped), which must exist.
  virtual std::span<const std::byte> raw(std::string_view name) const = 0;
  /// Where a tensor stands in its file, if read() gives parts of it without computing the rest.
  struct FilePlace {
    std::filesystem::path file;
    uint64_t begin = 0, bytes = 0;
  };
  virtual std::optional<FilePlace> file_place(std::string_view) const { return std::nullopt; }
  /// Where the pieces stand that read_codes() gives of a coded tensor, in its order, as rows; of
  /// another tensor, its place. Empty where they do not stand in a file like that.
  virtual std::vector<FilePlace> piece_places(std::string_view name) const {
    const auto place = file_place(name);
    return place ? std::vector{*place} : std::vector<FilePlace>();
  }
  /// How many rows of a tensor read() should give at once, where threads share them, so that they
  /// do the same work seldom; 0: all.
  virtual int64_t rows_at_once(std::string_view name) const { return file_place(name) ? 1 : 0; }
  /// Copies `to.numel()` elements, row-major from element `first` on, into host memory, decoded or
  /// converted between floating-point types. `first` and the count are whole blocks of a coded
  /// tensor. Throws Error when the types do not convert.
  virtual void read(std::string_view name, int64_t first, const Tensor& to) const = 0;

  /// Copies rows of a coded tensor as they are kept in the format that its entry names (a row of
  /// ops::kWeightFormats): `pieces` are codes, scales, minima and super-block scales in ordinary
  /// memory, [rows, n] each; those that the format lacks are empty. Rows are counted through all of
  /// the tensor's matrices.
  virtual void read_codes(std::string_view name, int64_t first_row,
                          std::span<const Tensor> pieces) const;

  /// The tensor of that name. Throws Error naming the model and the tensor when it is absent.
  const TensorEntry& at(std::string_view name) const;
  /// Copies a whole tensor. Throws Error when the shape differs.
  void read_into(std::string_view name, const Tensor& to) const;
  uint64_t bytes() const;  // of all tensors

  struct NonFinite {
    std::string name;
    int64_t index = 0;  // of the element, row-major
    double value = 0;
    std::filesystem::path file;
  };
  /// The first NaN or infinity of each tensor that has one, in the order of names(). Reads all the
  /// data of floating-point tensors.
  std::vector<NonFinite> non_finite() const { return non_finite(names()); }
  std::vector<NonFinite> non_finite(std::span<const std::string> names) const;
  /// Throws Error naming file, tensor and element if there is a NaN or an infinity.
  void refuse_non_finite() const { refuse_non_finite(names()); }
  void refuse_non_finite(std::span<const std::string> names) const;

 protected:
  /// Whether the scales of a coded tensor show that all of its numbers are finite. False where only
  /// decoding does.
  virtual bool has_finite_scales(std::string_view) const { return false; }

 private:
  std::optional<NonFinite> first_non_finite(const std::string& name) const;
};

}  // namespace mixtral
