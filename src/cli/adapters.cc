#include "cli/adapters.h"

#include <fmt/format.h>

#include "base/error.h"
#include "io/json.h"
#include "train/checkpoint_store.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

bool is_adapter(const fs::path& directory) {
  std::error_code error;
  return fs::exists(directory / "adapter_config.json", error);
}

}  // namespace

fs::path resolve_adapter(const std::string& adapter) {
  const fs::path path(adapter);
  if (is_adapter(path)) return path;
  const auto checkpoint = find_checkpoint(path);
  if (checkpoint && is_adapter(*checkpoint)) return *checkpoint;
  std::error_code error;
  if (!fs::exists(path, error))
    throw Error(fmt::format("--adapter {}: there is no such directory", adapter));
  throw Error(
      fmt::format("--adapter {}: found neither adapter_config.json (an adapter) nor a checkpoint "
                  "of a run that trained one{}",
                  adapter, checkpoint ? "; the run there trained a whole model" : ""));
}

void settle_adapter(std::string& model, std::string& adapter) {
  if (!adapter.empty()) {
    adapter = resolve_adapter(adapter).string();
    return;
  }
  std::error_code error;
  const fs::path path(model);
  if (fs::exists(path / "config.json", error)) return;
  fs::path found;
  if (is_adapter(path))
    found = path;
  else if (const auto checkpoint = find_checkpoint(path); checkpoint && is_adapter(*checkpoint))
    found = *checkpoint;
  if (found.empty()) return;
  const Json config = Json::load(found / "adapter_config.json");
  const Json* base = config.find("base_model_name_or_path");
  if (!base || !base->is_string())
    throw Error(
        fmt::format("--model {}: holds an adapter that does not say which model it is for; give "
                    "that model with --model and this one with --adapter",
                    model));
  if (!fs::exists(base->as_string(), error) && !names_configuration(base->as_string()))
    throw Error(fmt::format(
        "--model {}: holds an adapter for the model {}, which is not there; give the model with "
        "--model and this one with --adapter",
        model, base->as_string()));
  adapter = found.string();
  model = base->as_string();
}

Precision adapter_precision(std::string_view dtype, const Backend& backend, Dtype stored) {
  Precision p = choose_precision(dtype, backend, Purpose::training, stored);
  if (p.weights != Dtype::f32) return p;
  if (dtype == "bf16") p.weights = Dtype::bf16;
  if (dtype == "auto" && (stored == Dtype::bf16 || stored == Dtype::f16)) p.weights = stored;
  return p;
}

OpenModel open_for_inference(Backend& backend, const CommonOptions& common,
                             const std::string& model, const std::string& adapter, int64_t context,
                             int64_t sequences) {
  const ModelConfig config = model_config(model);
  const Precision precision =
      choose_precision(common.dtype, backend, Purpose::inference, config.dtype);
  OpenModel open;
  open.model = open_model(backend, common, model,
                          {.weights = precision.weights,
                           .compute = precision.compute,
                           .context = context,
                           .rope_frequencies = common.rope_dtype(),
                           .quantization = common.quantization()},
                          sequences);
  if (!adapter.empty())
    open.adapter = std::make_unique<Adapter>(
        backend, *open.model, AdapterFile::load(adapter, config), Adapter::Options{});
  return open;
}

std::optional<ChatTemplate> find_chat_template(const std::string& model,
                                               const std::string& adapter) {
  if (!adapter.empty())
    if (const auto noted = find_chat_template_name(adapter)) return noted;
  if (names_configuration(model)) return std::nullopt;
  return find_chat_template_name(resolve_model(model));
}

}  // namespace mixtral
