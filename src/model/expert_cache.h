#pragma once

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/direct_file.h"
#include "io/tensor_source.h"
#include "model/expert_sizes.h"
#include "model/host_experts.h"

namespace mixtral {

inline constexpr int kExpertReaders = 8;  // enough requests to keep a disk busy
inline constexpr int kExpertLanes = 2;    // one copies while the other's thread wakes up

/// Why experts of these files cannot be read one by one as the model keeps them; empty where they
/// can: their tensors stand in the files as rows, in the model's order.
std::string why_not_streamed(Mixtral& model, const TensorSource& tensors);

/// Gives back what the system's cache holds of the model's files, which are larger than the memory:
/// before weights take that memory. Finding room for them page by page takes many times as long.
void drop_cached_files(const TensorSource& tensors);

/// Experts' weights in a fixed amount of a device's memory, the rest in the model's files, or, for
/// a GPU, in the host's memory. Each layer has places for some of its experts, and keeps those that
/// were used last. What a pass needs is read by threads: from files past the system's cache of
/// pages (base/direct_file.h), and brought into the order in which the kernels read it; from the
/// host's memory by copies beside the device's work, which wait for the products that use a place
/// before. Behind that they read what the next layer is likely to need. What is in memory when
/// depends on what was needed and expected, and on nothing else, unless a wrong guess is still
/// under way when its place is asked for.
class ExpertCache : public nn::ExpertStore {
 public:
  struct Options {
    int64_t memory = 0;  // bytes, at least ExpertSizes::least_bytes()
    int readers = 0;     // threads; 0: kExpertReaders of files, kExpertLanes of the host's memory
    bool read_ahead = true;
  };

  /// What happened so far. An expert counts once for each of its two products.
  struct Figures {
    int64_t needed = 0;    // by passes over layers
    int64_t found = 0;     // of these, were in memory since an earlier pass
    int64_t foretold = 0;  // of these, had been read ahead, or were under way
    int64_t expected = 0;  // guesses of a pass's need that could be checked, and
    int64_t right = 0;     // of these, were needed
    int64_t repeated = 0;  // of `needed`: the layer's pass before had needed them, too
    int64_t read = 0;      // to the end; bytes_read in all
    int64_t bytes_read = 0;
    double waiting = 0;  // seconds for which the computation waited for reads
    double reading = 0;  // seconds in which at least one read was under way

    Figures operator-(const Figures& earlier) const;
  };

  /// Attaches itself to the model's streamed experts; both must outlive it, and `tensors` its
  /// construction. The files must have passed check_weights(). Throws Error where the memory is too
  /// little, or why_not_streamed() says so.
  ExpertCache(Backend& backend, Mixtral& model, const TensorSource& tensors,
              const Options& options);
  /// The same of experts in the host's memory, which must outlive it, for a device that is no CPU.
  ExpertCache(Backend& backend, Mixtral& model, const HostExperts& experts, const Options& options);
  ~ExpertCache() override;

  /// Whether experts are copied from the host's memory, rather than read from files.
  bool copies() const { return host_ != nullptr; }

  /// Bytes beside the places: what the threads read files into.
  static int64_t staging_bytes();
  const ExpertSizes& sizes() const { return sizes_; }
  int64_t places() const { return places_; }  // for experts, in all layers
  Figures figures() const;
  /// Bytes a second at which as many threads read experts' bytes that are not asked for, measured
  /// for about `seconds`. For comparison; nothing may be under way.
  double measure_reading(double seconds);

  void need(int64_t layer, std::span<const int32_t> experts) override;
  void expect(int64_t layer, std::span<const int32_t> experts) override;
  std::vector<int32_t> order(int64_t layer, nn::ExpertProduct product) override;
  std::span<const ops::Weight> hold(int64_t layer, nn::ExpertProduct product,
                                    int32_t expert) override;
  void give_back(int64_t layer, nn::ExpertProduct product, int32_t expert) override;

 private:
  using Clock = std::chrono::steady_clock;

  /// Rows of a weight's piece that stand one after another in a file and in the weight; or, in the
  /// host's memory, `count` bytes from `begin` on of an expert's product, which are one row each.
  struct Rows {
    size_t file = 0;  // of files_
    uint64_t begin = 0;
    int64_t row_bytes = 0;   // in the file
    Dtype type = Dtype::u8;  // of numbers; else codes
    size_t weight = 0;       // which of the product's parameters
    Tensor ops::Weight::* piece = &ops::Weight::codes;
    int64_t first = 0, count = 0;      // rows there
    std::string name;                  // of the file's tensor
    const std::byte* bytes = nullptr;  // in the host's memory
  };
  enum class State : uint8_t { empty, waiting, reading, ready };
  struct Place {
    int32_t expert = -1;
    State state = State::empty;
    bool needed = false, held = false, ahead = false;
    uint64_t used = 0;    // when; the smallest goes first
    int64_t pieces = 0;   // that are not read yet
    uint64_t serial = 0;  // of its reading: pieces of an earlier one are void
    std::exception_ptr error;
    std::vector<ops::Weight> weights;
    std::byte* data = nullptr;        // where they begin
    std::unique_ptr<Fence> released;  // behind the products that used them
  };
  /// One product of one layer.
  struct Shelf {
    std::vector<std::vector<Rows>> experts;  // what each is read from
    std::vector<Place> places;
    std::vector<int32_t> order;  // of the pass that is under way
    struct Missing {
      int32_t expert = 0;
      uint64_t used = 0;
    };
    std::deque<Missing> missing;  // of it: have no place yet
    std::vector<int32_t> guess;   // what was expected of the next pass
  };
  struct Piece {
    Shelf* shelf = nullptr;
    size_t place = 0;
    uint64_t serial = 0;
    const Rows* rows = nullptr;
  };

  Shelf& shelf(int64_t layer, nn::ExpertProduct product) {
    return shelves_[static_cast<size_t>(layer)][static_cast<size_t>(product)];
  }
  /// What brings pieces to their places; each thread has one.
  class Reader;
  class FileReader;
  class LaneReader;

  ExpertCache(Backend& backend, Mixtral& model, const HostExperts* host, const Options& options);
  void describe(Mixtral& model, const TensorSource& tensors);
  void describe(Mixtral& model, const HostExperts& experts);
  void start(Mixtral& model, int64_t memory);
  std::unique_ptr<Reader> make_reader(bool trial);
  void make_places(Mixtral& model, int64_t memory);
  static Place* find(Shelf& shelf, int32_t expert);
  // Under the lock:
  static Place* free_place(Shelf& shelf);
  Place& fetch(Shelf& shelf, Place& place, int32_t expert, bool ahead);
  void fetch_missing(Shelf& shelf);
  void need_product(Shelf& shelf, std::span<const int32_t> experts);
  static bool is_of(const Piece& piece, const Shelf& shelf, const Place& place);
  void hurry(const Shelf& shelf, const Place& place);
  int64_t give_up(const Shelf& shelf, const Place& place);
  std::optional<Piece> next_piece();
  void begin_reading();
  void end_reading(int64_t bytes);

  void work(Reader& reader);

  Backend& backend_;
  const HostExperts* host_;  // null: files
  ExpertSizes sizes_;
  int64_t places_ = 0;
  int readers_;
  bool read_ahead_;
  std::vector<DirectFile> files_;
  std::vector<std::array<Shelf, nn::kExpertProducts>> shelves_;  // [L]
  std::vector<Buffer> memory_;
  uint64_t room_ = 0;  // bytes that a thread reads into

  mutable std::mutex mutex_;
  std::condition_variable work_, done_;
  std::deque<Piece> wanted_, ahead_;
  uint64_t clock_ = 0;
  bool stop_ = false;
  Figures figures_;
  int under_way_ = 0;        // reads
  Clock::time_point since_;  // when the first of them began
  std::vector<std::unique_ptr<Reader>> reading_;
  std::vector<std::thread> threads_;
};

}  // namespace mixtral
