#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <functional>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/threads.h"
#include "io/convert.h"
#include "model/checkpoint.h"
#include "model/load_parameters.h"
#include "model/tensor_names.h"
#include "nn/layout.h"
#include "tensor/cutter.h"

// Where weights are in ordinary memory, threads bring them there: each takes a piece of a tensor,
// reads it from the mapped file, looks for numbers that are not finite and writes it to its place,
// in the order in which the kernels read it. So a file's bytes are touched once. Other devices, and
// tensors that stand in the file in another order, take the long way, one by one.
namespace mixtral {
namespace {

using Part = nn::Parameter::Part;

constexpr int64_t kLoadedAtOnce = int64_t{1} << 18;  // of a file that are in a cache at once

/// Codes of one tensor at a time, as files have them, in ordinary memory.
class CodeStaging {
 public:
  /// The tensor's rows in the model's order. The file must have the part's format.
  ops::Weight read(const TensorSource& tensors, const TensorPlace& place, const ModelConfig& config,
                   const TensorId& id, ops::WeightFormat format) {
    const Shape one = tensor_shape(config, id.kind);
    const Shape shape{1, one[0], one[1]};
    const auto cut = [&](Cutter cutter) {
      weight_ = ops::make_weight(
          shape, format, [&](Shape piece, Dtype dtype) { return cutter.take(piece, dtype); });
      return cutter.size();
    };
    const int64_t bytes = cut(Cutter());
    if (buffer_.empty() || buffer_.bytes() < bytes) buffer_ = Buffer(host_memory(), bytes);
    cut(Cutter(buffer_.data()));
    const TensorNaming& row = place.naming;
    const int64_t first =
        ((row.all_experts ? id.expert * row.parts : 0) + row.part) * weight_.rows();
    if (row.row_order == TensorNaming::RowOrder::same) {
      copy(tensors, place, first, weight_);
      return weight_;
    }
    for (int64_t r = 0; r < weight_.rows(); ++r)
      copy(tensors, place, first + row_in_head(row, r, config.head_dim),
           weight_.slice_rows(r, r + 1));
    return weight_;
  }

 private:
  static void copy(const TensorSource& tensors, const TensorPlace& place, int64_t first,
                   const ops::Weight& to) {
    std::vector<Tensor> pieces;
    for (const auto piece : ops::kWeightPieces) pieces.push_back(to.*piece);
    tensors.read_codes(place.name, first, pieces);
  }

  Buffer buffer_;
  ops::Weight weight_;
};

/// Whether the part can be copied as it stands in the file.
bool keeps_format(const nn::Parameter& p, const TensorSource& tensors, const TensorPlace& place) {
  return p.packed && !p.packed.dense() && !place.naming.transposed &&
         tensors.at(place.name).format == p.packed.format.name();
}

/// The pieces of the tensors that go straight to their places.
class DirectPieces {
 public:
  using Layout = std::function<ops::WeightLayout(const nn::Parameter&)>;

  DirectPieces(Layout layout, const TensorSource& tensors, const ModelConfig& config)
      : layout_(std::move(layout)), tensors_(tensors), config_(config) {}

  /// Takes a parameter, unless it must go the long way.
  bool take(nn::Parameter& p) {
    if (p.parts.front().order != Part::Order::same) return false;
    std::vector<std::pair<const Part*, Source>> parts;
    for (const Part& part : p.parts) {
      if (!has_whole_bundles(p, part)) return false;
      auto source = source_of(p, part);
      if (!source) return false;
      parts.emplace_back(&part, std::move(*source));
    }
    for (const auto& [part, source] : parts) add(p, *part, source);
    if (p.packed) p.packed.layout = layout_(p);
    return true;
  }

  /// Returns whether all numbers were finite.
  bool run() {
    std::atomic<bool> finite = true;
    ThreadPool pool;
    pool.for_each(static_cast<int64_t>(pieces_.size()), [&](int64_t i, int) {
      if (!copy(pieces_[static_cast<size_t>(i)])) finite = false;
    });
    return finite;
  }

 private:
  /// A part's tensor, and where it begins there.
  struct Source {
    std::string name;
    int64_t first = 0;  // element
    TensorNaming naming;
  };
  struct Piece {
    std::string name;
    int64_t first = 0;  // of the file's tensor: element, or of codes that the source gives, row
    Tensor to;          // numbers; or, where it is empty,
    ops::Weight dense;  // the place of numbers in another layout than rows; or, where it is empty,
    // Codes in plain rows in the file, and their place; `from` is empty where the source gives
    // them.
    ops::Weight from, codes;
    // Of rows that stand in another order in the file: `from` is all of the part, and these are the
    // rows of `codes` in it.
    std::optional<TensorNaming> naming;
    int64_t row = 0;
  };

  /// Whether the part's rows are whole bundles of the layout.
  bool has_whole_bundles(const nn::Parameter& p, const Part& part) const {
    if (!p.packed) return true;
    const int64_t columns = p.columns(), bundle = ops::bundle_rows(layout_(p));
    return part.offset / columns % bundle == 0 && part.shape.numel() / columns % bundle == 0;
  }

  /// Whether the source gives the rows of a packed parameter: they stay in rows, or consist of
  /// several pieces. Others are mapped from the file.
  bool reads_codes(const nn::Parameter& p) const {
    return layout_(p) == ops::WeightLayout::rows ||
           p.packed.format.kind() == ops::FormatKind::separate;
  }

  std::optional<Source> source_of(const nn::Parameter& p, const Part& part) const {
    const TensorId id = *parse_tensor_name(part.name);
    TensorPlace place = *find_place(tensors_, config_, id);
    const bool same_order = place.naming.row_order == TensorNaming::RowOrder::same;
    const bool codes = p.packed && !p.packed.dense();
    const bool in_blocks = codes && !reads_codes(p);
    if (place.naming.transposed || (!same_order && !in_blocks) ||
        (in_blocks && !tensors_.file_place(place.name)) ||
        (!codes && tensors_.rows_at_once(place.name) == 0))
      return std::nullopt;
    if (codes) {
      const Shape shape{1, part.shape[0], part.shape[1]};
      if (!keeps_format(p, tensors_, place) || !ops::has_layout(p.packed.format, shape, layout_(p)))
        return std::nullopt;
    }
    const int64_t group = place.naming.all_experts ? id.expert * place.naming.parts : 0;
    return Source{std::move(place.name), (group + place.naming.part) * part.shape.numel(),
                  place.naming};
  }

  void add(const nn::Parameter& p, const Part& part, const Source& source) {
    const int64_t columns = part.shape[part.shape.rank() - 1];
    const int64_t rows = part.shape.numel() / columns;
    if (p.packed && p.packed.dense()) {
      ops::Weight dense = p.packed;
      dense.layout = layout_(p);
      const int64_t place = part.offset / columns, bundle = ops::bundle_rows(dense.layout);
      const int64_t bundle_bytes = bundle * columns * size_of(dense.codes.dtype());
      const int64_t least = (tensors_.rows_at_once(source.name) + bundle - 1) / bundle;
      const int64_t step = bundle * std::max(least, kLoadedAtOnce / bundle_bytes);
      for (int64_t row = 0; row < rows; row += step)
        pieces_.push_back(
            {.name = source.name,
             .first = source.first + row * columns,
             .dense = dense.slice_rows(place + row, place + std::min(row + step, rows))});
      return;
    }
    if (!p.packed) {
      // Whole rows: whole blocks, where the file's tensor is in blocks.
      const Tensor to = p.value_of(part).reshape({rows, columns});
      const int64_t step = std::max(tensors_.rows_at_once(source.name),
                                    kLoadedAtOnce / (columns * size_of(to.dtype())));
      for (int64_t row = 0; row < rows; row += step)
        pieces_.push_back({.name = source.name,
                           .first = source.first + row * columns,
                           .to = to.slice(row, std::min(row + step, rows))});
      return;
    }
    const ops::WeightFormat format = p.packed.format;
    if (reads_codes(p)) {
      ops::Weight codes = p.packed;
      codes.layout = layout_(p);
      const int64_t place = part.offset / columns, bundle = ops::bundle_rows(codes.layout);
      const int64_t bundle_bytes = bundle * format.row_bytes(columns);
      const int64_t step = bundle * std::max<int64_t>(1, kLoadedAtOnce / bundle_bytes);
      for (int64_t row = 0; row < rows; row += step) {
        const int64_t end = std::min(row + step, rows);
        pieces_.push_back({.name = source.name,
                           .first = source.first / columns + row,
                           .codes = codes.slice_rows(place + row, place + end)});
      }
      return;
    }
    const int64_t row_bytes = format.row_bytes(columns), at = source.first / columns * row_bytes;
    // Nothing writes through it: the mapping is read-only.
    auto* const bytes = const_cast<std::byte*>(tensors_.raw(source.name).data()) + at;
    const ops::Weight from =
        ops::make_weight({1, rows, columns}, format,
                         [&](Shape shape, Dtype dtype) { return Tensor(bytes, shape, dtype); });
    ops::Weight codes = p.packed;
    codes.layout = layout_(p);
    const int64_t place = part.offset / columns,
                  step = 8 * std::max<int64_t>(1, kLoadedAtOnce / (8 * row_bytes));
    const bool same_order = source.naming.row_order == TensorNaming::RowOrder::same;
    for (int64_t row = 0; row < rows; row += step) {
      const int64_t end = std::min(row + step, rows);
      Piece piece{.name = source.name,
                  .from = same_order ? from.slice_rows(row, end) : from,
                  .codes = codes.slice_rows(place + row, place + end),
                  .row = row};
      if (!same_order) piece.naming = source.naming;
      pieces_.push_back(std::move(piece));
    }
  }

  bool copy(const Piece& piece) const {
    if (piece.to) {
      tensors_.read(piece.name, piece.first, piece.to);
      return find_non_finite(static_cast<const std::byte*>(piece.to.data()), piece.to.dtype(),
                             piece.to.numel()) < 0;
    }
    if (piece.dense) {
      // Room that a thread keeps: pieces are read one after another.
      thread_local std::vector<std::byte> room;
      room.resize(static_cast<size_t>(piece.dense.bytes()));
      ops::Weight rows = piece.dense;
      rows.layout = ops::WeightLayout::rows;
      rows.codes = Tensor(room.data(), rows.codes.shape(), rows.codes.dtype());
      tensors_.read(piece.name, piece.first, rows.codes);
      ops::change_layout(rows, piece.dense);
      return find_non_finite(room.data(), rows.codes.dtype(), rows.codes.numel()) < 0;
    }
    if (!piece.from) {
      const bool stays = piece.codes.layout == ops::WeightLayout::rows;
      thread_local std::vector<std::byte> room;
      if (!stays) room.resize(static_cast<size_t>(piece.codes.bytes()));
      std::byte* free = room.data();
      ops::Weight rows = piece.codes;
      rows.layout = ops::WeightLayout::rows;
      std::vector<Tensor> pieces;
      for (const auto each : ops::kWeightPieces) {
        const Tensor& kept = piece.codes.*each;
        if (!stays && kept) {
          rows.*each = Tensor(free, kept.shape(), kept.dtype());
          free += kept.bytes();
        }
        pieces.push_back(rows.*each);
      }
      tensors_.read_codes(piece.name, piece.first, pieces);
      if (!stays) ops::change_layout(rows, piece.codes);
      return ops::has_finite_scales(rows);
    }
    ops::Weight from = piece.from;
    std::vector<std::byte> ordered;
    if (piece.naming) {
      const int64_t rows = piece.codes.rows(), row_bytes = from.codes.dim(1);
      ordered.resize(static_cast<size_t>(rows * row_bytes));
      const auto* const all = static_cast<const std::byte*>(from.codes.data());
      for (int64_t r = 0; r < rows; ++r)
        std::memcpy(ordered.data() + r * row_bytes,
                    all + row_in_head(*piece.naming, piece.row + r, config_.head_dim) * row_bytes,
                    static_cast<size_t>(row_bytes));
      from = piece.codes;
      from.layout = ops::WeightLayout::rows;
      from.codes = Tensor(ordered.data(), piece.codes.codes.shape(), Dtype::u8);
    }
    ops::change_layout(from, piece.codes);
    return ops::has_finite_scales(from);
  }

  Layout layout_;
  const TensorSource& tensors_;
  const ModelConfig& config_;
  std::vector<Piece> pieces_;
};

}  // namespace

std::vector<nn::Parameter*> load_in_memory(
    const nn::ParameterSource& source, const ModelConfig& config, const TensorSource& tensors,
    const std::function<ops::WeightLayout(const nn::Parameter&)>& layout) {
  DirectPieces direct(layout, tensors, config);
  std::vector<nn::Parameter*> others;
  source([&](nn::Parameter& p) {
    if (!direct.take(p)) others.push_back(&p);
  });
  refuse_non_finite(others, config, tensors);
  // The file's numbers decide, not what they were converted to.
  if (!direct.run()) tensors.refuse_non_finite();
  return others;
}

void refuse_non_finite(const std::vector<nn::Parameter*>& parameters, const ModelConfig& config,
                       const TensorSource& tensors) {
  std::set<std::string> names;
  for (const nn::Parameter* p : parameters)
    for (const Part& part : p->parts)
      names.insert(find_place(tensors, config, *parse_tensor_name(part.name))->name);
  tensors.refuse_non_finite(std::vector<std::string>(names.begin(), names.end()));
}

void load_one_by_one(Backend& backend, const std::vector<nn::Parameter*>& parameters,
                     const ModelConfig& config, const TensorSource& tensors) {
  Buffer staging;
  CodeStaging codes;
  nn::PartWriter writer(backend);
  for (const nn::Parameter* p : parameters) {
    for (const Part& part : p->parts) {
      const TensorId id = *parse_tensor_name(part.name);
      const TensorPlace place = *find_place(tensors, config, id);
      if (keeps_format(*p, tensors, place)) {
        writer.copy(*p, part, codes.read(tensors, place, config, id, p->packed.format));
      } else {
        const int64_t bytes = part.shape.numel() * size_of(p->type);
        if (staging.bytes() < bytes) staging = Buffer(host_memory(), bytes);
        const Tensor host = staging.tensor(part.shape, p->type);
        read_tensor(tensors, place, config, id, host);
        writer.write(*p, part, [&](const Tensor& device) { backend.upload(host, device); });
      }
      backend.synchronize();  // the staging area is used again
    }
  }
}

void load_weights(Backend& backend, Mixtral& model, const TensorSource& tensors) {
  check_weights(model.config(), tensors);
  nn::use_plain_rows(backend, model.parameters());
  std::vector<nn::Parameter*> others;
  if (backend.kind() == DeviceKind::cpu) {
    others =
        load_in_memory(model.parameters(), model.config(), tensors, [&](const nn::Parameter& p) {
          return backend.preferred_layout(p.packed.format, p.packed.shape);
        });
  } else {
    model.for_each_parameter([&](nn::Parameter& p) { others.push_back(&p); });
    refuse_non_finite(others, model.config(), tensors);
  }
  load_one_by_one(backend, others, model.config(), tensors);
  nn::use_preferred_layouts(backend, model.parameters());
}

}  // namespace mixtral
