#include "model/expert_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <set>
#include <utility>

#include "base/advice.h"
#include "base/printable.h"
#include "io/convert.h"
#include "model/memory_plan.h"
#include "model/tensor_names.h"
#include "tensor/cutter.h"

namespace mixtral {
namespace {

constexpr int64_t kReadAtOnce = int64_t{2} << 20;  // bytes of a file
constexpr int64_t kBundleRows = 8;                 // that are interleaved

using nn::ExpertProduct;
using nn::Parameter;

ops::Weight one_expert(const Parameter& parameter,
                       const std::function<Tensor(Shape, Dtype)>& take) {
  return ops::make_weight({1, parameter.shape[1], parameter.shape[2]}, *parameter.format, take);
}

/// Bytes of one expert's weights in these parameters, as a Cutter cuts them.
int64_t bytes_of_one(const nn::StreamedExperts& experts) {
  Cutter cutter;
  for (const Parameter& parameter : experts.parameters())
    one_expert(parameter, [&](Shape shape, Dtype dtype) { return cutter.take(shape, dtype); });
  return cutter.size();
}

void for_each_streamed(Mixtral& model, const std::function<void(nn::StreamedExperts&)>& visit) {
  for (Block& block : model.blocks())
    for (auto* projection : {&block.experts.gate_up, &block.experts.down}) {
      auto* const streamed = dynamic_cast<nn::StreamedExperts*>(projection->get());
      CHECK(streamed != nullptr, "a model whose experts are not streamed");
      visit(*streamed);
    }
}

/// Rows that are read at once: whole bundles, where there are any.
int64_t rows_at_once(int64_t row_bytes) {
  const int64_t rows = kReadAtOnce / std::max<int64_t>(1, row_bytes);
  return std::max(kBundleRows, rows / kBundleRows * kBundleRows);
}

/// Whether codes are all of finite numbers.
bool are_finite(const ops::Weight& codes) {
  if (codes.format.row().halves > 0) return ops::has_finite_scales(codes);
  std::vector<float> values(static_cast<size_t>(codes.inputs()));
  for (int64_t row = 0; row < codes.rows(); ++row) {
    ops::unpack_row(codes, row, values);
    if (find_non_finite(reinterpret_cast<const std::byte*>(values.data()), Dtype::f32,
                        codes.inputs()) >= 0)
      return false;
  }
  return true;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

int64_t ExpertSizes::staging_bytes() {
  return kExpertReaders * static_cast<int64_t>(DirectFile::room(kReadAtOnce));
}

int64_t ExpertSizes::used_bytes(int64_t memory) const {
  return std::min(memory / expert_bytes(), layers * experts) * expert_bytes();
}

ExpertSizes expert_sizes(Mixtral& model) {
  ExpertSizes sizes{.layers = model.config().num_layers, .experts = model.config().num_experts};
  for_each_streamed(model, [&](nn::StreamedExperts& experts) {
    int64_t& bytes = sizes.product_bytes[static_cast<size_t>(experts.product())];
    bytes = std::max(bytes, bytes_of_one(experts));
  });
  return sizes;
}

std::string why_not_streamed(Mixtral& model, const TensorSource& tensors) {
  std::string reason;
  for_each_streamed(model, [&](nn::StreamedExperts& experts) {
    for (const Parameter& p : experts.parameters()) {
      for (const Parameter::Part& part : p.parts) {
        if (!reason.empty()) return;
        const auto place = find_place(tensors, model.config(), *parse_tensor_name(part.name));
        CHECK(place.has_value(), part.name);
        const TensorEntry& entry = tensors.at(place->name);
        const bool as_kept =
            p.format->dense()
                ? entry.dtype && convertible(*entry.dtype, p.format->row().type)
                : p.format->kind() == ops::FormatKind::blocks && entry.format == p.format->name();
        if (!as_kept)
          reason = fmt::format("tensor {} is kept as {} and would have to be converted to {}",
                               printable(place->name), entry.type, p.format->name());
        else if (!tensors.file_place(place->name) || place->naming.transposed ||
                 place->naming.row_order != TensorNaming::RowOrder::same)
          reason = fmt::format("tensor {} does not stand in the file as rows of the model's weight",
                               printable(place->name));
      }
    }
  });
  return reason;
}

void drop_cached_files(const TensorSource& tensors) {
  std::set<std::filesystem::path> files;
  for (const std::string& name : tensors.names())
    if (const auto place = tensors.file_place(name)) files.insert(place->file);
  for (const auto& file : files) DirectFile(file).drop_cached();
}

ExpertCache::Figures ExpertCache::Figures::operator-(const Figures& earlier) const {
  return {.needed = needed - earlier.needed,
          .found = found - earlier.found,
          .foretold = foretold - earlier.foretold,
          .expected = expected - earlier.expected,
          .right = right - earlier.right,
          .repeated = repeated - earlier.repeated,
          .read = read - earlier.read,
          .bytes_read = bytes_read - earlier.bytes_read,
          .waiting = waiting - earlier.waiting,
          .reading = reading - earlier.reading};
}

ExpertCache::ExpertCache(Backend& backend, Mixtral& model, const TensorSource& tensors,
                         const Options& options)
    : sizes_(expert_sizes(model)),
      readers_(options.readers),
      read_ahead_(options.read_ahead),
      shelves_(static_cast<size_t>(sizes_.layers)) {
  CHECK(backend.kind() != DeviceKind::gpu && readers_ >= 1);
  if (const std::string reason = why_not_streamed(model, tensors); !reason.empty())
    throw Error(fmt::format("{}: its experts cannot be read one by one: {}",
                            tensors.path().string(), reason));
  if (options.memory < sizes_.least_bytes())
    throw AdvisedError(fmt::format(
        "‹expert-memory›: {} are too little; the model needs at least {}, one of the {} experts "
        "of each layer",
        format_bytes(options.memory), format_bytes(sizes_.least_bytes()), sizes_.experts));
  describe(model, tensors);
  make_places(backend, model, options.memory);
  for_each_streamed(model, [&](nn::StreamedExperts& experts) { experts.attach(*this); });
  for (Block& block : model.blocks())
    if (block.experts.next.router) block.experts.next.store = this;
  for (int i = 0; i < readers_; ++i) threads_.emplace_back([this] { work(); });
}

ExpertCache::~ExpertCache() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

/// Notes where in the files each expert's rows stand.
void ExpertCache::describe(Mixtral& model, const TensorSource& tensors) {
  std::map<std::filesystem::path, size_t> opened;
  for_each_streamed(model, [&](nn::StreamedExperts& streamed) {
    Shelf& to = shelf(streamed.layer(), streamed.product());
    to.experts.resize(static_cast<size_t>(sizes_.experts));
    for (size_t i = 0; i < streamed.parameters().size(); ++i) {
      const Parameter& p = streamed.parameters()[i];
      const int64_t columns = p.columns(), of_expert = p.shape[1] * columns;
      for (const Parameter::Part& part : p.parts) {
        const TensorId id = *parse_tensor_name(part.name);
        const TensorPlace place = *find_place(tensors, model.config(), id);
        const TensorEntry& entry = tensors.at(place.name);
        const auto stored = *tensors.file_place(place.name);
        const auto [file, is_new] = opened.emplace(stored.file, files_.size());
        if (is_new) files_.emplace_back(stored.file);
        const int64_t row_bytes =
            entry.dtype ? columns * size_of(*entry.dtype) : p.format->row_bytes(columns);
        const int64_t rows = part.shape[0];
        const int64_t group = place.naming.all_experts ? id.expert * place.naming.parts : 0;
        const int64_t expert = part.offset / of_expert;
        const int64_t first = (part.offset - expert * of_expert) / columns;
        const uint64_t begin =
            stored.begin + static_cast<uint64_t>((group + place.naming.part) * rows * row_bytes);
        const int64_t step = std::min(rows, rows_at_once(row_bytes));
        room_ = std::max(room_, DirectFile::room(static_cast<uint64_t>(step * row_bytes)));
        for (int64_t row = 0; row < rows; row += step)
          to.experts[static_cast<size_t>(expert)].push_back(
              {.file = file->second,
               .begin = begin + static_cast<uint64_t>(row * row_bytes),
               .row_bytes = row_bytes,
               .type = entry.dtype.value_or(Dtype::u8),
               .weight = i,
               .first = first + row,
               .count = std::min(step, rows - row),
               .name = place.name});
      }
    }
  });
}

/// Shares the memory out among the layers, as evenly as whole experts allow.
void ExpertCache::make_places(Backend& backend, Mixtral& model, int64_t memory) {
  places_ = sizes_.used_bytes(memory) / sizes_.expert_bytes();
  const auto count = [&](int64_t layer) {
    return places_ / sizes_.layers + (layer < places_ % sizes_.layers ? 1 : 0);
  };
  std::array<char*, nn::kExpertProducts> next{};
  for (size_t product = 0; product < next.size(); ++product) {
    memory_.emplace_back(backend, places_ * sizes_.product_bytes[product]);
    next[product] = static_cast<char*>(memory_.back().data());
  }
  for_each_streamed(model, [&](nn::StreamedExperts& streamed) {
    const auto product = static_cast<size_t>(streamed.product());
    Shelf& to = shelf(streamed.layer(), streamed.product());
    to.places.resize(static_cast<size_t>(count(streamed.layer())));
    for (Place& place : to.places) {
      Cutter cutter(next[product]);
      next[product] += sizes_.product_bytes[product];
      for (const Parameter& p : streamed.parameters()) {
        place.weights.push_back(
            one_expert(p, [&](Shape shape, Dtype dtype) { return cutter.take(shape, dtype); }));
        ops::Weight& weight = place.weights.back();
        if (!weight.dense()) weight.layout = backend.preferred_layout(weight.format, weight.shape);
      }
    }
  });
}

ExpertCache::Figures ExpertCache::figures() const {
  const std::lock_guard lock(mutex_);
  return figures_;
}

ExpertCache::Place* ExpertCache::find(Shelf& shelf, int32_t expert) {
  const auto found = std::ranges::find(shelf.places, expert, &Place::expert);
  return found == shelf.places.end() ? nullptr : &*found;
}

/// The place that is empty, or whose expert was used longest ago; null where none may be taken now.
ExpertCache::Place* ExpertCache::free_place(Shelf& shelf) {
  Place* best = nullptr;
  for (Place& place : shelf.places) {
    if (place.needed || place.held || place.state == State::reading) continue;
    if (place.state == State::empty) return &place;
    if (!best || place.used < best->used) best = &place;
  }
  return best;
}

ExpertCache::Place& ExpertCache::fetch(Shelf& shelf, Place& place, int32_t expert, bool ahead) {
  const auto& rows = shelf.experts[static_cast<size_t>(expert)];
  place.expert = expert;
  place.state = State::waiting;
  place.ahead = ahead;
  place.pieces = static_cast<int64_t>(rows.size());
  place.error = nullptr;
  place.serial = ++clock_;
  auto& queue = ahead ? ahead_ : wanted_;
  for (const Rows& one : rows)
    queue.push_back({.shelf = &shelf,
                     .place = static_cast<size_t>(&place - shelf.places.data()),
                     .serial = place.serial,
                     .rows = &one});
  work_.notify_all();
  return place;
}

void ExpertCache::fetch_missing(Shelf& shelf) {
  while (!shelf.missing.empty()) {
    Place* const place = free_place(shelf);
    if (!place) return;
    const Shelf::Missing next = shelf.missing.front();
    shelf.missing.pop_front();
    Place& taken = fetch(shelf, *place, next.expert, /*ahead=*/false);
    taken.needed = true;
    taken.used = next.used;
  }
}

/// Puts what is left to read of a guess that came true among what is waited for.
void ExpertCache::hurry(const Shelf& shelf, const Place& place) {
  const auto index = static_cast<size_t>(&place - shelf.places.data());
  std::erase_if(ahead_, [&](const Piece& piece) {
    const bool same = piece.shelf == &shelf && piece.place == index && piece.serial == place.serial;
    if (same) wanted_.push_back(piece);
    return same;
  });
}

void ExpertCache::need_product(Shelf& shelf, std::span<const int32_t> experts) {
  const auto is_needed = [&](int32_t expert) {
    return std::ranges::find(experts, expert) != experts.end();
  };
  figures_.repeated += std::ranges::count_if(shelf.order, is_needed);
  shelf.missing.clear();
  shelf.order.clear();
  for (Place& place : shelf.places) {
    place.needed = place.held = false;
    // What failed is read again. A wrong guess that nobody has begun to read is let go.
    const bool idle = place.ahead && place.state == State::waiting && !is_needed(place.expert);
    if (!place.error && !idle) continue;
    place.expert = -1;
    if (place.state == State::reading) continue;  // its last pieces empty it
    place.state = State::empty;
    place.error = nullptr;
  }
  figures_.needed += static_cast<int64_t>(experts.size());
  figures_.expected += static_cast<int64_t>(shelf.guess.size());
  figures_.right += std::ranges::count_if(shelf.guess, is_needed);
  shelf.guess.clear();
  std::vector<int32_t> later;
  for (const int32_t expert : experts) {
    Place* const place = find(shelf, expert);
    if (!place) {
      shelf.missing.push_back({expert, ++clock_});
      continue;
    }
    ++(place->ahead ? figures_.foretold : figures_.found);
    place->needed = true;
    place->used = ++clock_;
    if (place->ahead && place->state != State::ready) hurry(shelf, *place);
    place->ahead = false;
    (place->state == State::ready ? shelf.order : later).push_back(expert);
  }
  shelf.order.insert(shelf.order.end(), later.begin(), later.end());
  for (const auto& missing : shelf.missing) shelf.order.push_back(missing.expert);
  fetch_missing(shelf);
}

void ExpertCache::need(int64_t layer, std::span<const int32_t> experts) {
  const std::lock_guard lock(mutex_);
  for (auto& shelf : shelves_[static_cast<size_t>(layer)]) need_product(shelf, experts);
}

void ExpertCache::expect(int64_t layer, std::span<const int32_t> experts) {
  const std::lock_guard lock(mutex_);
  for (Shelf& shelf : shelves_[static_cast<size_t>(layer)]) {
    shelf.guess.assign(experts.begin(), experts.end());
    if (!read_ahead_) continue;
    // Those that have a place keep it.
    const auto likely = experts.first(std::min(experts.size(), shelf.places.size()));
    for (const int32_t expert : likely)
      if (Place* const place = find(shelf, expert)) place->used = ++clock_;
    for (const int32_t expert : likely) {
      if (find(shelf, expert)) continue;
      Place* const place = free_place(shelf);
      if (!place) break;
      fetch(shelf, *place, expert, /*ahead=*/true).used = ++clock_;
    }
  }
}

std::vector<int32_t> ExpertCache::order(int64_t layer, ExpertProduct product) {
  const std::lock_guard lock(mutex_);
  return shelf(layer, product).order;
}

std::span<const ops::Weight> ExpertCache::hold(int64_t layer, ExpertProduct product,
                                               int32_t expert) {
  std::unique_lock lock(mutex_);
  Shelf& from = shelf(layer, product);
  Place* place = nullptr;
  const auto is_there = [&] {
    place = find(from, expert);
    return place && place->state == State::ready;
  };
  if (!is_there()) {
    const auto start = Clock::now();
    done_.wait(lock, is_there);
    figures_.waiting += seconds_since(start);
  }
  if (place->error) {
    place->needed = false;
    std::rethrow_exception(place->error);
  }
  place->held = true;
  return place->weights;
}

void ExpertCache::give_back(int64_t layer, ExpertProduct product, int32_t expert) {
  const std::lock_guard lock(mutex_);
  Shelf& to = shelf(layer, product);
  Place* const place = find(to, expert);
  CHECK(place && place->held);
  place->held = place->needed = false;
  fetch_missing(to);
}

std::optional<ExpertCache::Piece> ExpertCache::next_piece() {
  for (auto* queue : {&wanted_, &ahead_}) {
    while (!queue->empty()) {
      const Piece piece = queue->front();
      queue->pop_front();
      Place& place = piece.shelf->places[piece.place];
      if (place.serial != piece.serial || place.state == State::empty) continue;  // given up
      place.state = State::reading;
      return piece;
    }
  }
  return std::nullopt;
}

void ExpertCache::begin_reading() {
  if (under_way_++ == 0) since_ = Clock::now();
}

void ExpertCache::end_reading(int64_t bytes) {
  figures_.bytes_read += bytes;
  if (--under_way_ == 0) figures_.reading += seconds_since(since_);
}

void ExpertCache::work() {
  const Buffer room(host_memory(), static_cast<int64_t>(room_));
  const std::span bytes(static_cast<std::byte*>(room.data()), static_cast<size_t>(room.bytes()));
  std::unique_lock lock(mutex_);
  while (true) {
    work_.wait(lock, [&] { return stop_ || !wanted_.empty() || !ahead_.empty(); });
    if (stop_) return;
    const auto piece = next_piece();
    if (!piece) continue;
    Place& place = piece->shelf->places[piece->place];
    if (!place.error) {
      begin_reading();
      const ops::Weight weight = place.weights[piece->rows->weight];
      lock.unlock();
      std::exception_ptr error;
      try {
        read(*piece->rows, weight, bytes);
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      end_reading(piece->rows->count * piece->rows->row_bytes);
      if (error) place.error = error;
    }
    if (--place.pieces > 0) continue;
    place.state = place.expert < 0 ? State::empty : State::ready;
    if (place.expert < 0) place.error = nullptr;
    ++figures_.read;
    fetch_missing(*piece->shelf);
    done_.notify_all();
  }
}

void ExpertCache::read(const Rows& rows, const ops::Weight& to, std::span<std::byte> room) const {
  const DirectFile& file = files_[rows.file];
  const auto bytes =
      file.read(rows.begin, static_cast<uint64_t>(rows.count * rows.row_bytes), room);
  const ops::Weight place = to.slice_rows(rows.first, rows.first + rows.count);
  bool finite = false;
  if (to.dense()) {
    const int64_t count = rows.count * to.inputs();
    finite = find_non_finite(bytes.data(), rows.type, count) < 0;
    convert_elements(bytes.data(), rows.type, static_cast<std::byte*>(place.codes.data()),
                     place.codes.dtype(), count);
  } else {
    auto* const codes = const_cast<std::byte*>(bytes.data());
    const ops::Weight from =
        ops::make_weight({1, rows.count, to.inputs()}, to.format,
                         [&](Shape shape, Dtype dtype) { return Tensor(codes, shape, dtype); });
    finite = are_finite(from);
    ops::change_layout(from, place);
  }
  if (!finite)
    throw Error(fmt::format("{}: tensor \"{}\" has a NaN or an infinity; the weights are damaged",
                            file.path().string(), printable(rows.name)));
}

double ExpertCache::measure_reading(double seconds) {
  std::vector<const Rows*> pieces;
  for (const auto& layer : shelves_)
    for (const Shelf& shelf : layer)
      for (const auto& expert : shelf.experts)
        for (const Rows& rows : expert) pieces.push_back(&rows);
  std::atomic<size_t> next = 0;
  std::atomic<int64_t> bytes = 0;
  const auto start = Clock::now();
  std::vector<std::thread> threads;
  threads.reserve(static_cast<size_t>(readers_));
  std::exception_ptr error;
  std::mutex failing;
  for (int i = 0; i < readers_; ++i)
    threads.emplace_back([&] {
      try {
        const Buffer room(host_memory(), static_cast<int64_t>(room_));
        const std::span to(static_cast<std::byte*>(room.data()), static_cast<size_t>(room.bytes()));
        while (seconds_since(start) < seconds) {
          const size_t at = next.fetch_add(1);
          if (at >= pieces.size()) return;
          const Rows& rows = *pieces[at];
          const int64_t count = rows.count * rows.row_bytes;
          files_[rows.file].read(rows.begin, static_cast<uint64_t>(count), to);
          bytes.fetch_add(count);
        }
      } catch (...) {
        const std::lock_guard lock(failing);
        error = std::current_exception();
      }
    });
  for (std::thread& thread : threads) thread.join();
  if (error) std::rethrow_exception(error);
  return static_cast<double>(bytes) / seconds_since(start);
}

}  // namespace mixtral
