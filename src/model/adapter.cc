#include "model/adapter.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>
#include <utility>

#include "base/file.h"
#include "model/adapter_places.h"
#include "model/checkpoint.h"
#include "model/tensor_names.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
using nn::LoraBranch;
using nn::Parameter;

/// The parameter of one matrix: as one tensor of the file, or as one an expert.
Parameter matrix(const PeftLayout& layout, const AdapterModule& module, char which,
                 const TargetShape& shape) {
  const bool is_a = which == 'A';
  const int64_t r = module.rank;
  const AdapterTarget& target = adapter_target(module.target);
  Parameter p;
  p.role = is_a ? nn::Role::lora_a : nn::Role::lora_b;
  p.shape = is_a ? Shape{shape.groups, r, shape.inputs} : Shape{shape.groups, shape.rows, r};
  const Shape one = is_a ? Shape{r, shape.inputs} : Shape{shape.rows, r};
  if (target.per_expert) {
    for (const int64_t e : module.experts)
      p.parts.push_back({layout.name(module, which, e), e * one.numel(), one});
  } else if (target.fused) {
    const std::string name = layout.name(module, which, 0);
    if (is_a)
      p.parts.push_back({name, 0, {shape.groups * r, shape.inputs}});
    else
      p.parts.push_back(
          {name, 0, {shape.rows, r * shape.groups}, Parameter::Part::Order::group_fastest});
  } else {
    p.parts.push_back({layout.name(module, which, 0), 0, one});
  }
  return p;
}

/// Experts that a module leaves alone: their updates stay zero.
std::vector<int64_t> untouched_groups(const AdapterModule& module, int64_t groups) {
  std::vector<int64_t> result;
  if (!adapter_target(module.target).per_expert) return result;
  for (int64_t e = 0; e < groups; ++e)
    if (!std::binary_search(module.experts.begin(), module.experts.end(), e)) result.push_back(e);
  return result;
}

}  // namespace

Adapter::Adapter(Backend& backend, Mixtral& model, AdapterFile file, const Options& options)
    : backend_(backend), model_(model), file_(std::move(file)), layout_(file_, model.config()) {
  std::map<std::unique_ptr<nn::Projection>*, std::vector<LoraBranch>> branches;
  std::vector<std::unique_ptr<nn::Projection>*> order;
  for (const AdapterModule& module : file_.modules) {
    const TargetShape shape = target_shape(model.config(), module.target);
    LoraBranch branch;
    branch.begin = first_column(model.config(), module.target);
    branch.scale = module.scale;
    branch.dropout = file_.dropout;
    branch.untouched = untouched_groups(module, shape.groups);
    branch.a = matrix(layout_, module, 'A', shape);
    branch.b = matrix(layout_, module, 'B', shape);
    branch.a.trainable = branch.b.trainable = options.trainable;
    auto& place = projection_of(model, module);
    if (!branches.contains(&place)) order.push_back(&place);
    branches[&place].push_back(std::move(branch));
  }
  for (auto* place : order) wrap(*place, std::move(branches[place]));

  const Dtype type = ops::statistics_dtype(model.options().compute);
  store_ = std::make_unique<nn::ParameterStore>(backend, parameters(), type, type);
  nn::initialise(backend, parameters(), {.seed = options.seed});
  set_values(file_);
  for (AdapterModule& module : file_.modules) module.a = module.b = {};
}

void Adapter::set_values(const AdapterFile& file) {
  // The branches stand in the order of the modules within each projection: walk both.
  std::map<nn::Lora*, size_t> next;
  for (const AdapterModule& module : file.modules) {
    nn::Lora* lora = nullptr;
    for (const Wrapped& wrapped : wrapped_)
      if (wrapped.place == &projection_of(model_, module)) lora = wrapped.lora;
    CHECK(lora != nullptr);
    LoraBranch& branch = lora->branches()[next[lora]++];
    if (!module.a.empty()) {
      send_values(backend_, module.a, branch.a.value);
      send_values(backend_, module.b, branch.b.value);
    } else {
      for (const int64_t group : branch.untouched)
        backend_.run(ops::Fill{.x = branch.a.value[group]});
    }
  }
}

void Adapter::load_values(const AdapterFile& file) {
  auto describe = [](const AdapterModule& m) {
    return fmt::format("{}{} of rank {} and alpha {}",
                       m.layer >= 0 ? fmt::format("layer {} ", m.layer) : "", m.target, m.rank,
                       m.alpha);
  };
  for (size_t i = 0; i < std::max(file.modules.size(), file_.modules.size()); ++i) {
    const AdapterModule* ours = i < file_.modules.size() ? &file_.modules[i] : nullptr;
    const AdapterModule* theirs = i < file.modules.size() ? &file.modules[i] : nullptr;
    const bool same = ours && theirs && ours->layer == theirs->layer &&
                      ours->target == theirs->target && ours->rank == theirs->rank &&
                      ours->experts == theirs->experts;
    if (!same)
      throw Error(fmt::format("the adapter differs from the one in use: expected {}, found {}",
                              ours ? describe(*ours) : "nothing more",
                              theirs ? describe(*theirs) : "nothing more"));
  }
  set_values(file);
}

Adapter::~Adapter() { unwrap(); }

void Adapter::wrap(std::unique_ptr<nn::Projection>& place, std::vector<LoraBranch> branches) {
  auto lora = std::make_unique<nn::Lora>(std::move(place), std::move(branches));
  wrapped_.push_back({&place, lora.get()});
  place = std::move(lora);
}

void Adapter::unwrap() {
  for (const Wrapped& wrapped : wrapped_) {
    auto base = wrapped.lora->release_base();
    *wrapped.place = std::move(base);
  }
  wrapped_.clear();
}

nn::ParameterSource Adapter::parameters() {
  return [this](const nn::ParameterVisitor& visit) {
    for (const Wrapped& wrapped : wrapped_) {
      for (LoraBranch& branch : wrapped.lora->branches()) {
        visit(branch.a);
        visit(branch.b);
      }
    }
  };
}

std::map<std::string, FileChecksum> Adapter::save(const fs::path& directory) {
  write_file(directory / "adapter_config.json", layout_.config());
  const FileChecksum sum = save_parameters(
      backend_, parameters(), directory / "adapter_model.safetensors", layout_.zeros());
  return {{"adapter_model.safetensors", sum}};
}

void Adapter::merge() {
  for (const Wrapped& wrapped : wrapped_) {
    const Tensor weight = wrapped.lora->base().plain_weight();
    CHECK(!weight.empty(), "only plain weights can be merged into");
    for (const LoraBranch& branch : wrapped.lora->branches()) {
      for (int64_t g = 0; g < weight.dim(0); ++g) {
        // W += scale · B A: B's rows are "dy", A is the weight that they are multiplied by.
        const Tensor rows = weight[g].slice(branch.begin, branch.begin + branch.rows());
        backend_.run(ops::GroupedMatmulInput{.dy = branch.b.value[g],
                                             .weight = branch.a.value.slice(g, g + 1),
                                             .dx = rows,
                                             .scale = branch.scale,
                                             .accumulate = true});
      }
    }
  }
  unwrap();
}

namespace {

/// The tensor that a target which is not fused changes.
TensorKind kind_of(std::string_view target) {
  if (target == "q_proj") return TensorKind::query;
  if (target == "k_proj") return TensorKind::key;
  if (target == "v_proj") return TensorKind::value;
  if (target == "o_proj") return TensorKind::attention_output;
  if (target == "gate") return TensorKind::router;
  if (target == "w1") return TensorKind::w1;
  if (target == "w2") return TensorKind::w2;
  if (target == "w3") return TensorKind::w3;
  CHECK(target == "lm_head");
  return TensorKind::head;
}

/// One adapter's update of one on-disk weight [rows, inputs], added to `values` in f64.
class Updates {
 public:
  Updates(const AdapterFile& file, double weight, const ModelConfig& config)
      : file_(file), weight_(weight), config_(config) {
    for (size_t i = 0; i < file.modules.size(); ++i) index(i);
  }

  /// Returns whether it had one.
  bool add_to(const std::string& name, std::vector<double>& values) const {
    const auto [begin, end] = by_name_.equal_range(name);
    for (auto it = begin; it != end; ++it) add(it->second, values);
    return begin != end;
  }

 private:
  struct Slice {
    size_t module = 0;
    int64_t group = 0;
    int64_t first_row = 0, rows = 0;  // of the module's output rows
  };

  void index(size_t i) {
    const AdapterModule& module = file_.modules[i];
    const TargetShape shape = target_shape(config_, module.target);
    const AdapterTarget& target = adapter_target(module.target);
    const auto place = [&](TensorKind kind, int64_t expert, const Slice& slice) {
      by_name_.emplace(tensor_name({.kind = kind, .layer = module.layer, .expert = expert}), slice);
    };
    const int64_t f = config_.intermediate_size;
    if (target.per_expert) {
      for (const int64_t e : module.experts)
        place(kind_of(module.target), e, Slice{i, e, 0, shape.rows});
    } else if (target.fused) {
      for (int64_t e = 0; e < shape.groups; ++e) {
        if (module.target == "down_proj") {
          place(TensorKind::w2, e, Slice{i, e, 0, shape.rows});
          continue;
        }
        place(TensorKind::w1, e, Slice{i, e, 0, f});
        place(TensorKind::w3, e, Slice{i, e, f, f});
      }
    } else {
      place(kind_of(module.target), -1, Slice{i, 0, 0, shape.rows});
    }
  }

  void add(const Slice& slice, std::vector<double>& values) const {
    const AdapterModule& module = file_.modules[slice.module];
    const TargetShape shape = target_shape(config_, module.target);
    const int64_t r = module.rank, inputs = shape.inputs;
    const float* a = module.a.data() + slice.group * r * inputs;
    const float* b = module.b.data() + (slice.group * shape.rows + slice.first_row) * r;
    for (int64_t row = 0; row < slice.rows; ++row) {
      double* out = values.data() + row * inputs;
      for (int64_t j = 0; j < r; ++j) {
        const double factor = weight_ * module.scale * static_cast<double>(b[row * r + j]);
        if (factor == 0) continue;
        for (int64_t i = 0; i < inputs; ++i)
          out[i] += factor * static_cast<double>(a[j * inputs + i]);
      }
    }
  }

  const AdapterFile& file_;
  double weight_;
  const ModelConfig& config_;
  std::multimap<std::string, Slice> by_name_;
};

}  // namespace

int64_t merge_adapters(const fs::path& base, const std::vector<WeightedAdapter>& adapters,
                       const fs::path& out, const std::function<void(const MergedTensor&)>& note) {
  const ModelTensors tensors(base);
  const ModelConfig config = settle_config(ModelConfig::load(base), tensors);
  check_weights(config, tensors);
  for (const WeightedAdapter& adapter : adapters)
    for (const AdapterModule& module : adapter.file.modules)
      if (module.layer < 0 && config.tie_embeddings)
        throw Error(fmt::format(
            "{}: its output matrix is the embedding (tie_word_embeddings), so an update "
            "of lm_head cannot be merged; use it as an adapter",
            base.string()));
  std::vector<Updates> updates;
  updates.reserve(adapters.size());
  for (const WeightedAdapter& adapter : adapters)
    updates.emplace_back(adapter.file, adapter.weight, config);
  std::vector<PlannedTensor> plan;
  for_each_tensor(config, [&](const TensorId& id) {
    const TensorEntry& entry = tensors.at(find_place(tensors, config, id)->name);
    if (entry.coded)
      throw Error(
          fmt::format("{}: tensor {} is {}: updates cannot be added to quantized weights; "
                      "merge into the full-precision model, then quantize that",
                      base.string(), entry.name, entry.type));
    plan.push_back(
        {.name = tensor_name(id), .shape = tensor_shape(config, id.kind), .dtype = *entry.dtype});
  });
  std::error_code error;
  fs::create_directories(out, error);
  config.save(out);
  int64_t changed = 0;
  std::vector<double> values, before;
  write_model_tensors(out, plan, [&](const PlannedTensor& planned) {
    values.resize(static_cast<size_t>(planned.shape.numel()));
    const Tensor host(values.data(), planned.shape, Dtype::f64);
    const TensorId id = *parse_tensor_name(planned.name);
    read_tensor(tensors, *find_place(tensors, config, id), config, id, host);
    if (note) before = values;
    bool any = false;
    for (const Updates& update : updates) any |= update.add_to(planned.name, values);
    changed += any;
    if (any && note) {
      double change = 0, size = 0;
      for (size_t i = 0; i < values.size(); ++i) {
        change += (values[i] - before[i]) * (values[i] - before[i]);
        size += before[i] * before[i];
      }
      note({planned.name, size > 0 ? std::sqrt(change / size) : std::sqrt(change)});
    }
    return host;
  });
  return changed;
}

}  // namespace mixtral
