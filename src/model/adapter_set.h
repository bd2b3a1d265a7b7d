#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "model/adapter_file.h"
#include "model/mixtral.h"
#include "nn/lora.h"

namespace mixtral {

/// The LoRA adapters of a model in inference, of which each row of a batch uses one or none. They
/// may differ in rank, scale and targets, and may come and go between forward passes. Their A and B
/// stand together where rank and scale are the same (nn::LoraBranch). The model must outlive the
/// set, and takes its plain projections back when the set goes. As its backend, it is for one
/// thread at a time.
class AdapterSet {
 public:
  /// `own`, where given, becomes the adapter kOwnAdapter: what rows use that name none.
  AdapterSet(Backend& backend, Mixtral& model, const std::optional<AdapterFile>& own = {});
  ~AdapterSet();
  AdapterSet(const AdapterSet&) = delete;
  AdapterSet& operator=(const AdapterSet&) = delete;

  /// Puts an adapter's values on the device and returns its index, from 1 on: the smallest that is
  /// free. Throws Error, with nothing changed, when the device's memory is full.
  int32_t add(const AdapterFile& file);
  /// Takes an adapter that was added out, and its index is free, as soon as nothing uses it. Until
  /// then what uses it goes on with it; has() says no from now on.
  void remove(int32_t index);
  /// Whether the adapter is there, and not to be removed. kNoAdapter and kOwnAdapter always are.
  bool has(int32_t index) const;

  /// What uses an adapter says so, and when it has done.
  void retain(int32_t index);
  void release(int32_t index);

  /// All indices are below this.
  int64_t count() const { return static_cast<int64_t>(entries_.size()); }
  /// A number that no other adapter of this set has had, also where its index comes again: what is
  /// kept of an adapter's work can be found by it. kNoAdapter's is −1.
  int64_t serial(int32_t index) const;
  /// Changes whenever memory that a forward pass reads may have moved: recordings of one no longer
  /// hold.
  int64_t version() const { return version_; }
  int64_t bytes() const;  // of all values on the device

 private:
  struct Entry {
    enum class State : uint8_t { free, loaded, leaving };
    State state = State::free;
    int64_t users = 0;
    int64_t serial = 0;
  };
  /// A projection that is wrapped, and the memory of its branches, in their order.
  struct Place {
    std::unique_ptr<nn::Projection>* projection = nullptr;
    nn::Lora* lora = nullptr;
    std::vector<Buffer> buffers;
  };

  Place& place_of(const AdapterModule& module);
  void put(int32_t index, const AdapterModule& module);
  void take_out(int32_t index);
  /// The branch with room for an update of this form, and which of its places is free.
  struct Room {
    nn::LoraBranch* branch = nullptr;
    int64_t place = 0;
  };
  Room make_room(Place& place, const AdapterModule& module);
  /// Gives a branch memory for so many places, with the values of those it has.
  Buffer resize(const Place& place, nn::LoraBranch& branch, int64_t places) const;

  Backend& backend_;
  Mixtral& model_;
  Dtype type_;
  std::map<std::unique_ptr<nn::Projection>*, Place> places_;
  std::vector<Entry> entries_;  // by index
  int64_t last_serial_ = 0, version_ = 0;
};

}  // namespace mixtral
