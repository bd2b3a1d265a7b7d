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
/// Bytes of the host's memory: long enough for full speed, short enough that what is needed does
/// not wait long behind a guess.
constexpr int64_t kCopiedAtOnce = int64_t{16} << 20;

using nn::ExpertProduct;
using nn::Parameter;

/// Rows that are read at once: whole bundles, where there are any.
int64_t rows_at_once(int64_t row_bytes) {
  const int64_t rows = kReadAtOnce / std::max<int64_t>(1, row_bytes);
  return std::max(kBundleRows, rows / kBundleRows * kBundleRows);
}

/// A piece of a weight, as a file has it for some columns.
struct PieceRow {
  Tensor ops::Weight::* piece;
  int64_t bytes;
};

/// The pieces of a format that is not dense, in the order of ops::kWeightPieces.
std::vector<PieceRow> piece_rows(ops::WeightFormat format, int64_t columns) {
  const ops::FormatRow& row = format.row();
  const int64_t bytes[] = {format.codes(columns) * size_of(row.type),
                           format.scales(columns) * size_of(row.scale_type),
                           format.minima(columns) * size_of(row.minimum_type),
                           format.super_scales(columns) * size_of(row.super_type)};
  std::vector<PieceRow> rows;
  for (size_t i = 0; i < std::size(bytes); ++i)
    if (bytes[i] > 0) rows.push_back({ops::kWeightPieces[i], bytes[i]});
  return rows;
}

/// Whether piece by piece can be looked through for NaNs: codes alone are no numbers.
bool has_plain_codes(ops::WeightFormat format) {
  return format.kind() == ops::FormatKind::blocks || format.row().offset != ops::BlockOffset::none;
}

/// Whether a piece, or all of a weight in blocks, is of finite numbers.
bool are_finite(const ops::Weight& codes) {
  if (codes.format.kind() == ops::FormatKind::separate || codes.format.row().halves > 0)
    return ops::has_finite_scales(codes);
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

std::string why_not_streamed(Mixtral& model, const TensorSource& tensors) {
  std::string reason;
  for_each_streamed(model, [&](nn::StreamedExperts& experts) {
    for (const Parameter& p : experts.parameters()) {
      for (const Parameter::Part& part : p.parts) {
        if (!reason.empty()) return;
        const auto place = find_place(tensors, model.config(), *parse_tensor_name(part.name));
        CHECK(place.has_value(), part.name);
        const TensorEntry& entry = tensors.at(place->name);
        const bool as_kept = p.format->dense()
                                 ? entry.dtype && convertible(*entry.dtype, p.format->row().type)
                                 : entry.format == p.format->name() && has_plain_codes(*p.format);
        if (!as_kept)
          reason = fmt::format("tensor {} is kept as {} and would have to be converted to {}",
                               printable(place->name), entry.type, p.format->name());
        else if (tensors.piece_places(place->name).empty() || place->naming.transposed ||
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
    for (const auto& place : tensors.piece_places(name)) files.insert(place.file);
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

/// Brings pieces of experts to their places, in one thread.
class ExpertCache::Reader {
 public:
  virtual ~Reader() = default;
  virtual void read(const Rows& rows, const Place& place) = 0;
  /// The same bytes to no place.
  virtual void try_reading(const Rows& rows) = 0;
};

class ExpertCache::FileReader : public Reader {
 public:
  explicit FileReader(const ExpertCache& cache)
      : files_(cache.files_), room_(host_memory(), static_cast<int64_t>(cache.room_)) {}

  void read(const Rows& rows, const Place& place) override {
    const DirectFile& file = files_[rows.file];
    const ops::Weight& to = place.weights[rows.weight];
    const auto bytes = file.read(rows.begin, bytes_of(rows), room());
    const ops::Weight part = to.slice_rows(rows.first, rows.first + rows.count);
    bool finite = false;
    if (to.dense()) {
      const int64_t count = rows.count * to.inputs();
      finite = find_non_finite(bytes.data(), rows.type, count) < 0;
      convert_elements(bytes.data(), rows.type, static_cast<std::byte*>(part.codes.data()),
                       part.codes.dtype(), count);
    } else {
      // The other pieces come by themselves.
      ops::Weight from;
      from.shape = part.shape;
      from.format = part.format;
      const Tensor& kept = part.*rows.piece;
      from.*rows.piece = Tensor(const_cast<std::byte*>(bytes.data()), kept.shape(), kept.dtype());
      finite = are_finite(from);
      ops::change_layout(from, part);
    }
    if (!finite)
      throw Error(fmt::format("{}: tensor \"{}\" has a NaN or an infinity; the weights are damaged",
                              file.path().string(), printable(rows.name)));
  }
  void try_reading(const Rows& rows) override {
    files_[rows.file].read(rows.begin, bytes_of(rows), room());
  }

 private:
  static uint64_t bytes_of(const Rows& rows) {
    return static_cast<uint64_t>(rows.count * rows.row_bytes);
  }
  std::span<std::byte> room() const {
    return {static_cast<std::byte*>(room_.data()), static_cast<size_t>(room_.bytes())};
  }

  const std::vector<DirectFile>& files_;
  Buffer room_;
};

class ExpertCache::LaneReader : public Reader {
 public:
  /// `room`: on the device, where nothing else writes, for try_reading.
  LaneReader(Backend& backend, Buffer room)
      : lane_(backend.make_copy_lane()), nothing_(backend.make_fence()), room_(std::move(room)) {}

  void read(const Rows& rows, const Place& place) override {
    lane_->to_device(rows.bytes + rows.begin, place.data + rows.begin, rows.count, *place.released);
  }
  void try_reading(const Rows& rows) override {
    lane_->to_device(rows.bytes + rows.begin, room_.data(), rows.count, *nothing_);
  }

 private:
  std::unique_ptr<CopyLane> lane_;
  std::unique_ptr<Fence> nothing_;
  Buffer room_;
};

int64_t ExpertCache::staging_bytes() {
  return kExpertReaders * static_cast<int64_t>(DirectFile::room(kReadAtOnce));
}

ExpertCache::ExpertCache(Backend& backend, Mixtral& model, const HostExperts* host,
                         const Options& options)
    : backend_(backend),
      host_(host),
      sizes_(expert_sizes(model)),
      readers_(options.readers > 0 ? options.readers
               : host              ? kExpertLanes
                                   : kExpertReaders),
      read_ahead_(options.read_ahead),
      shelves_(static_cast<size_t>(sizes_.layers)) {
  if (options.memory < sizes_.least_bytes())
    throw AdvisedError(fmt::format(
        "‹expert-memory›: {} are too little; the model needs at least {}, one of the {} experts "
        "of each layer",
        format_bytes(options.memory), format_bytes(sizes_.least_bytes()), sizes_.experts));
}

ExpertCache::ExpertCache(Backend& backend, Mixtral& model, const TensorSource& tensors,
                         const Options& options)
    : ExpertCache(backend, model, nullptr, options) {
  CHECK(backend.kind() != DeviceKind::gpu);
  if (const std::string reason = why_not_streamed(model, tensors); !reason.empty())
    throw Error(fmt::format("{}: its experts cannot be read one by one: {}",
                            tensors.path().string(), reason));
  describe(model, tensors);
  start(model, options.memory);
}

ExpertCache::ExpertCache(Backend& backend, Mixtral& model, const HostExperts& experts,
                         const Options& options)
    : ExpertCache(backend, model, &experts, options) {
  CHECK(backend.kind() != DeviceKind::cpu, "its kernels want other layouts");
  describe(model, experts);
  start(model, options.memory);
}

void ExpertCache::start(Mixtral& model, int64_t memory) {
  make_places(model, memory);
  for_each_streamed(model, [&](nn::StreamedExperts& experts) { experts.attach(*this); });
  for (Block& block : model.blocks()) block.experts.streaming.store = this;
  for (int i = 0; i < readers_; ++i) reading_.push_back(make_reader(/*trial=*/false));
  for (const auto& reader : reading_) threads_.emplace_back([this, &reader] { work(*reader); });
}

/// `trial`: for try_reading.
std::unique_ptr<ExpertCache::Reader> ExpertCache::make_reader(bool trial) {
  if (host_)
    return std::make_unique<LaneReader>(backend_,
                                        trial ? Buffer(backend_, kCopiedAtOnce) : Buffer());
  return std::make_unique<FileReader>(*this);
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
        const int64_t rows = part.shape[0];
        const int64_t group = place.naming.all_experts ? id.expert * place.naming.parts : 0;
        const int64_t expert = part.offset / of_expert;
        const int64_t first = (part.offset - expert * of_expert) / columns;
        const std::vector<PieceRow> pieces =
            entry.dtype
                ? std::vector<PieceRow>{{&ops::Weight::codes, columns * size_of(*entry.dtype)}}
                : piece_rows(*p.format, columns);
        const auto stored = tensors.piece_places(place.name);
        CHECK(stored.size() == pieces.size(), place.name);
        for (size_t k = 0; k < pieces.size(); ++k) {
          const auto [piece, row_bytes] = pieces[k];
          const auto [file, is_new] = opened.emplace(stored[k].file, files_.size());
          if (is_new) files_.emplace_back(stored[k].file);
          const uint64_t begin =
              stored[k].begin +
              static_cast<uint64_t>((group + place.naming.part) * rows * row_bytes);
          const int64_t step = std::min(rows, rows_at_once(row_bytes));
          room_ = std::max(room_, DirectFile::room(static_cast<uint64_t>(step * row_bytes)));
          for (int64_t row = 0; row < rows; row += step)
            to.experts[static_cast<size_t>(expert)].push_back(
                {.file = file->second,
                 .begin = begin + static_cast<uint64_t>(row * row_bytes),
                 .row_bytes = row_bytes,
                 .type = entry.dtype.value_or(Dtype::u8),
                 .weight = i,
                 .piece = piece,
                 .first = first + row,
                 .count = std::min(step, rows - row),
                 .name = place.name});
        }
      }
    }
  });
}

/// Notes where in the host's memory each expert's bytes stand.
void ExpertCache::describe(Mixtral& model, const HostExperts& experts) {
  for_each_streamed(model, [&](nn::StreamedExperts& streamed) {
    Shelf& to = shelf(streamed.layer(), streamed.product());
    const int64_t bytes = experts.bytes(streamed.layer(), streamed.product());
    for (int64_t expert = 0; expert < sizes_.experts; ++expert) {
      const std::byte* const data = experts.data(streamed.layer(), streamed.product(), expert);
      auto& pieces = to.experts.emplace_back();
      for (int64_t begin = 0; begin < bytes; begin += kCopiedAtOnce)
        pieces.push_back({.begin = static_cast<uint64_t>(begin),
                          .row_bytes = 1,
                          .count = std::min(kCopiedAtOnce, bytes - begin),
                          .name = {},
                          .bytes = data});
    }
  });
}

/// Shares the memory out among the layers, as evenly as whole experts allow.
void ExpertCache::make_places(Mixtral& model, int64_t memory) {
  places_ = sizes_.used_bytes(memory) / sizes_.expert_bytes();
  const auto count = [&](int64_t layer) {
    return places_ / sizes_.layers + (layer < places_ % sizes_.layers ? 1 : 0);
  };
  std::array<char*, nn::kExpertProducts> next{};
  for (size_t product = 0; product < next.size(); ++product) {
    memory_.emplace_back(backend_, places_ * sizes_.product_bytes[product]);
    next[product] = static_cast<char*>(memory_.back().data());
  }
  for_each_streamed(model, [&](nn::StreamedExperts& streamed) {
    const auto product = static_cast<size_t>(streamed.product());
    Shelf& to = shelf(streamed.layer(), streamed.product());
    to.places.resize(static_cast<size_t>(count(streamed.layer())));
    for (Place& place : to.places) {
      Cutter cutter(next[product]);
      place.data = reinterpret_cast<std::byte*>(next[product]);
      next[product] += sizes_.product_bytes[product];
      place.weights =
          cut_expert(streamed, [&](Shape shape, Dtype dtype) { return cutter.take(shape, dtype); });
      if (host_) place.released = backend_.make_fence();
      for (ops::Weight& weight : place.weights)
        if (!weight.dense()) weight.layout = backend_.preferred_layout(weight.format, weight.shape);
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

bool ExpertCache::is_of(const Piece& piece, const Shelf& shelf, const Place& place) {
  return piece.shelf == &shelf && &shelf.places[piece.place] == &place &&
         piece.serial == place.serial;
}

/// Puts what is left to read of a guess that came true among what is waited for.
void ExpertCache::hurry(const Shelf& shelf, const Place& place) {
  std::erase_if(ahead_, [&](const Piece& piece) {
    const bool same = is_of(piece, shelf, place);
    if (same) wanted_.push_back(piece);
    return same;
  });
}

/// Forgets the pieces of a guess that nobody has begun to read. Returns how many.
int64_t ExpertCache::give_up(const Shelf& shelf, const Place& place) {
  return static_cast<int64_t>(
      std::erase_if(ahead_, [&](const Piece& piece) { return is_of(piece, shelf, place); }));
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
    // What failed is read again. What is still to be read of a wrong guess is let go.
    const bool wrong = place.ahead && place.state != State::ready && !is_needed(place.expert);
    if (!place.error && !wrong) continue;
    if (wrong) place.pieces -= give_up(shelf, place);
    place.expert = -1;
    if (place.state == State::reading && place.pieces > 0) continue;  // its last pieces empty it
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
    // Those that have a place keep it. Where there are too few places for all, as beside a long
    // prompt, that saves reading as many again.
    std::vector<int32_t> likely(experts.begin(), experts.end());
    std::ranges::stable_partition(likely,
                                  [&](int32_t expert) { return find(shelf, expert) != nullptr; });
    likely.resize(std::min(likely.size(), shelf.places.size()));
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
  if (place->released) place->released->set();
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

void ExpertCache::work(Reader& reader) {
  std::unique_lock lock(mutex_);
  while (true) {
    work_.wait(lock, [&] { return stop_ || !wanted_.empty() || !ahead_.empty(); });
    if (stop_) return;
    const auto piece = next_piece();
    if (!piece) continue;
    Place& place = piece->shelf->places[piece->place];
    if (!place.error) {
      begin_reading();
      lock.unlock();
      std::exception_ptr error;
      try {
        reader.read(*piece->rows, place);
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
    if (place.state == State::ready) ++figures_.read;
    fetch_missing(*piece->shelf);
    done_.notify_all();
  }
}

double ExpertCache::measure_reading(double seconds) {
  std::vector<const Rows*> pieces;
  for (const auto& layer : shelves_)
    for (const Shelf& shelf : layer)
      for (const auto& expert : shelf.experts)
        for (const Rows& rows : expert) pieces.push_back(&rows);
  std::atomic<size_t> next = 0;
  std::atomic<int64_t> bytes = 0;
  std::vector<std::unique_ptr<Reader>> readers;
  readers.reserve(static_cast<size_t>(readers_));
  for (int i = 0; i < readers_; ++i) readers.push_back(make_reader(/*trial=*/true));
  const auto start = Clock::now();
  std::vector<std::thread> threads;
  threads.reserve(static_cast<size_t>(readers_));
  std::exception_ptr error;
  std::mutex failing;
  for (const auto& reader : readers)
    threads.emplace_back([&] {
      try {
        while (seconds_since(start) < seconds) {
          const size_t at = next.fetch_add(1);
          if (at >= pieces.size()) return;
          const Rows& rows = *pieces[at];
          reader->try_reading(rows);
          bytes.fetch_add(rows.count * rows.row_bytes);
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
