#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/threads.h"
#include "convert/model_edit.h"
#include "io/tensor_source.h"
#include "tensor/buffer.h"

namespace mixtral {

/// The tensors of an edited model under Hugging Face's names, made as they are read. So no more
/// than a matrix of each source is in memory, and whatever takes a model's tensors takes these. A
/// tensor has its sources' type where they agree in a plain one, else the result's, or f32 of
/// quantized ones.
class EditedTensors : public TensorSource {
 public:
  /// The edit must outlive this. Throws Error as check_weights() does of a source.
  EditedTensors(const ModelEdit& edit, int threads);

  const std::filesystem::path& path() const override { return base().path(); }
  const std::vector<std::string>& names() const override { return names_; }
  const TensorEntry* find(std::string_view name) const override;
  const std::filesystem::path& file_of(std::string_view) const override { return base().path(); }
  /// Nothing: the tensors stand in no file.
  std::span<const std::byte> raw(std::string_view) const override { return {}; }
  void read(std::string_view name, int64_t first, const Tensor& to) const override;

 private:
  const TensorSource& base() const { return edit_.sources.front()->tensors(); }
  TensorEntry describe(const TensorId& id) const;
  void read_from(const ModelEdit::Origin& origin, const Tensor& to) const;
  Tensor made(const TensorId& id, Dtype dtype) const;
  void add_noise(const TensorId& id, double* values, int64_t count) const;
  void make_expert(const TensorId& id, double* values, int64_t count) const;
  void make_router(const TensorId& id, double* values) const;

  const ModelEdit& edit_;
  std::vector<std::string> names_;
  std::map<std::string, std::pair<TensorId, TensorEntry>, std::less<>> entries_;
  // Made one at a time: readers in several threads wait for one another.
  mutable std::mutex mutex_;
  mutable ThreadPool threads_;
  mutable Buffer sum_, part_, result_;
};

}  // namespace mixtral
