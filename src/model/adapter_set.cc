#include "model/adapter_set.h"

#include <algorithm>
#include <utility>

#include "model/adapter_places.h"
#include "tensor/cutter.h"

namespace mixtral {

using nn::LoraBranch;

AdapterSet::AdapterSet(Backend& backend, Mixtral& model, const std::optional<AdapterFile>& own)
    : backend_(backend),
      model_(model),
      type_(ops::statistics_dtype(model.options().compute)),
      entries_(1) {
  if (!own) return;
  entries_[kOwnAdapter] = {.state = Entry::State::loaded, .serial = ++last_serial_};
  for (const AdapterModule& module : own->modules) put(kOwnAdapter, module);
}

AdapterSet::~AdapterSet() {
  for (auto& [projection, place] : places_) {
    auto base = place.lora->release_base();
    *projection = std::move(base);
  }
}

int32_t AdapterSet::add(const AdapterFile& file) {
  int32_t index = kOwnAdapter + 1;
  while (index < count() && entries_[static_cast<size_t>(index)].state != Entry::State::free)
    ++index;
  if (index == count()) entries_.emplace_back();
  ++version_;
  try {
    for (const AdapterModule& module : file.modules) put(index, module);
  } catch (...) {
    take_out(index);
    throw;
  }
  entries_[static_cast<size_t>(index)] = {.state = Entry::State::loaded, .serial = ++last_serial_};
  return index;
}

void AdapterSet::remove(int32_t index) {
  CHECK(index > kOwnAdapter && has(index), "there is no such adapter to remove");
  Entry& entry = entries_[static_cast<size_t>(index)];
  entry.state = Entry::State::leaving;
  if (entry.users == 0) take_out(index);
}

bool AdapterSet::has(int32_t index) const {
  if (index == kNoAdapter || index == kOwnAdapter) return true;
  return index > 0 && index < count() &&
         entries_[static_cast<size_t>(index)].state == Entry::State::loaded;
}

void AdapterSet::retain(int32_t index) {
  CHECK(has(index), "there is no such adapter");
  if (index != kNoAdapter) ++entries_[static_cast<size_t>(index)].users;
}

void AdapterSet::release(int32_t index) {
  if (index == kNoAdapter) return;
  Entry& entry = entries_[static_cast<size_t>(index)];
  CHECK(entry.users > 0, "was not retained");
  if (--entry.users == 0 && entry.state == Entry::State::leaving) take_out(index);
}

int64_t AdapterSet::serial(int32_t index) const {
  return index == kNoAdapter ? -1 : entries_[static_cast<size_t>(index)].serial;
}

int64_t AdapterSet::bytes() const {
  int64_t sum = 0;
  for (const auto& [projection, place] : places_)
    for (const Buffer& buffer : place.buffers) sum += buffer.bytes();
  return sum;
}

AdapterSet::Place& AdapterSet::place_of(const AdapterModule& module) {
  std::unique_ptr<nn::Projection>& projection = projection_of(model_, module);
  Place& place = places_[&projection];
  if (!place.lora) {
    auto lora = std::make_unique<nn::Lora>(std::move(projection), std::vector<LoraBranch>());
    place.projection = &projection;
    place.lora = lora.get();
    projection = std::move(lora);
  }
  return place;
}

Buffer AdapterSet::resize(const Place& place, LoraBranch& branch, int64_t places) const {
  const int64_t groups = place.lora->groups(), before = branch.places();
  const Shape a{places * groups, branch.a.shape[1], branch.a.shape[2]};
  const Shape b{places * groups, branch.b.shape[1], branch.b.shape[2]};
  const auto cut = [&](void* base, Tensor& new_a, Tensor& new_b) {
    Cutter cutter(base);
    new_a = cutter.take(a, type_);
    new_b = cutter.take(b, type_);
    return cutter.size();
  };
  Tensor new_a, new_b;
  Buffer buffer(backend_, cut(nullptr, new_a, new_b));
  cut(buffer.data(), new_a, new_b);
  const auto move = [&](nn::Parameter& parameter, const Tensor& to) {
    if (before > 0) {
      const Buffer host(host_memory(), parameter.value.bytes());
      const Tensor values = host.tensor(parameter.value.shape(), type_);
      backend_.download(parameter.value, values);
      backend_.upload(values, to.slice(0, parameter.value.dim(0)));
      backend_.synchronize();
    }
    parameter.shape = to.shape();
    parameter.type = type_;
    parameter.value = to;
  };
  move(branch.a, new_a);
  move(branch.b, new_b);
  branch.adapters.resize(static_cast<size_t>(places), kNoAdapter);
  return buffer;
}

AdapterSet::Room AdapterSet::make_room(Place& place, const AdapterModule& module) {
  const TargetShape shape = target_shape(model_.config(), module.target);
  const int64_t begin = first_column(model_.config(), module.target);
  std::vector<LoraBranch>& branches = place.lora->branches();
  const auto same_form = [&](const LoraBranch& branch) {
    return branch.begin == begin && branch.rows() == shape.rows && branch.rank() == module.rank &&
           branch.scale == module.scale;
  };
  auto branch = std::ranges::find_if(branches, same_form);
  if (branch == branches.end()) {
    LoraBranch made;
    made.begin = begin;
    made.scale = module.scale;
    made.adapters.clear();
    made.a.shape = {0, module.rank, shape.inputs};
    made.b.shape = {0, shape.rows, module.rank};
    made.a.role = nn::Role::lora_a;
    made.b.role = nn::Role::lora_b;
    made.a.trainable = made.b.trainable = false;
    Buffer buffer = resize(place, made, 1);
    branches.push_back(std::move(made));
    place.buffers.push_back(std::move(buffer));
    return {&branches.back(), 0};
  }
  const auto free = std::ranges::find(branch->adapters, kNoAdapter) - branch->adapters.begin();
  if (free == branch->places())
    place.buffers[static_cast<size_t>(branch - branches.begin())] =
        resize(place, *branch, 2 * branch->places());
  return {&*branch, free};
}

void AdapterSet::put(int32_t index, const AdapterModule& module) {
  CHECK(!module.a.empty() && !module.b.empty(), "an adapter in inference has values");
  Place& place = place_of(module);
  const Room room = make_room(place, module);
  const int64_t groups = place.lora->groups();
  const auto values = [&](const nn::Parameter& parameter) {
    return parameter.value.slice(room.place * groups, (room.place + 1) * groups);
  };
  send_values(backend_, module.a, values(room.branch->a));
  send_values(backend_, module.b, values(room.branch->b));
  room.branch->adapters[static_cast<size_t>(room.place)] = index;
}

void AdapterSet::take_out(int32_t index) {
  ++version_;
  backend_.synchronize();  // memory goes
  for (auto& [projection, place] : places_) {
    std::vector<LoraBranch>& branches = place.lora->branches();
    for (size_t i = branches.size(); i-- > 0;) {
      std::vector<int32_t>& adapters = branches[i].adapters;
      std::ranges::replace(adapters, index, kNoAdapter);
      if (std::ranges::any_of(adapters, [](int32_t adapter) { return adapter != kNoAdapter; }))
        continue;
      branches.erase(branches.begin() + static_cast<std::ptrdiff_t>(i));
      place.buffers.erase(place.buffers.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
  entries_[static_cast<size_t>(index)] = {};
}

}  // namespace mixtral
