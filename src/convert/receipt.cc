#include "convert/receipt.h"

#include <fmt/format.h>

#include <charconv>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "io/json.h"

namespace mixtral {
namespace {

using nlohmann::ordered_json;

constexpr int kVersion = 1;

std::vector<int64_t> integers(const Json& json) {
  std::vector<int64_t> values;
  for (const Json& value : json.items()) values.push_back(value.as_int());
  return values;
}

std::vector<std::string> texts(const Json& json) {
  std::vector<std::string> values;
  for (const Json& value : json.items()) values.push_back(value.as_string());
  return values;
}

FileChecksum parse_sum(const Json& json) {
  FileChecksum sum{.bytes = static_cast<uint64_t>(json.at("bytes").as_int())};
  const std::string& hex = json.at("xxh3").as_string();
  const auto [end, error] = std::from_chars(hex.data(), hex.data() + hex.size(), sum.xxh3, 16);
  if (error != std::errc() || end != hex.data() + hex.size() || hex.size() != 16)
    throw Error(fmt::format("{}: expected 16 hexadecimal digits", json.at("xxh3").where()));
  return sum;
}

ordered_json json_of(const ReceiptTensor& t) {
  ordered_json json{{"source", t.source},
                    {"source_type", t.source_type},
                    {"source_shape", t.source_shape},
                    {"source_xxh3", t.source_sum},
                    {"model", t.model},
                    {"target", t.target},
                    {"target_type", t.target_type},
                    {"target_shape", t.target_shape}};
  if (t.source_model > 0) json["source_model"] = t.source_model;
  for (const ReceiptOrigin& other : t.others)
    json["others"].push_back(
        {{"source", other.name}, {"source_xxh3", other.sum}, {"source_model", other.source}});
  if (t.part >= 0) json["part"] = t.part;
  json["transform"] = t.transform;
  json["difference"] = t.difference;
  return json;
}

ReceiptTensor tensor_of(const Json& json) {
  ReceiptTensor t;
  t.source = json.at("source").as_string();
  t.source_type = json.at("source_type").as_string();
  t.source_shape = integers(json.at("source_shape"));
  t.source_sum = json.at("source_xxh3").as_string();
  t.model = json.at("model").as_string();
  t.target = json.at("target").as_string();
  t.target_type = json.at("target_type").as_string();
  t.target_shape = integers(json.at("target_shape"));
  if (const Json* model = json.find("source_model"))
    t.source_model = static_cast<size_t>(model->as_int());
  if (const Json* others = json.find("others"))
    for (const Json& other : others->items())
      t.others.push_back({.name = other.at("source").as_string(),
                          .sum = other.at("source_xxh3").as_string(),
                          .source = static_cast<size_t>(other.at("source_model").as_int())});
  if (const Json* part = json.find("part")) t.part = part->as_int();
  t.transform = json.at("transform").as_string();
  t.difference = json.at("difference").as_double();
  return t;
}

ordered_json json_of(const ReceiptEdit& edit) {
  ordered_json json{{"operation", edit.operation}};
  for (const ReceiptSource& source : edit.sources)
    json["sources"].push_back({{"path", source.path},
                               {"format", source.format},
                               {"dropped", source.dropped},
                               {"unused", source.unused}});
  return json;
}

ReceiptEdit edit_of(const Json& json) {
  ReceiptEdit edit{.operation = json.at("operation").as_string(), .sources = {}};
  for (const Json& source : json.at("sources").items())
    edit.sources.push_back({.path = source.at("path").as_string(),
                            .format = source.at("format").as_string(),
                            .dropped = texts(source.at("dropped")),
                            .unused = texts(source.at("unused"))});
  return edit;
}

ordered_json json_of(const LogitComparison& l) {
  return {{"tokens", l.tokens},
          {"difference", l.difference},
          {"top_agreement", l.top_agreement},
          {"source_top", l.top},
          {"source_largest", l.largest}};
}

LogitComparison logits_of(const Json& json) {
  LogitComparison l;
  for (const int64_t id : integers(json.at("tokens"))) l.tokens.push_back(static_cast<int32_t>(id));
  for (const int64_t id : integers(json.at("source_top")))
    l.top.push_back(static_cast<int32_t>(id));
  for (const Json& value : json.at("source_largest").items())
    l.largest.push_back(value.as_double());
  l.difference = json.at("difference").as_double();
  l.top_agreement = json.at("top_agreement").as_double();
  l.compared = true;
  return l;
}

}  // namespace

std::string Receipt::to_json() const {
  ordered_json json{{"receipt", kVersion},
                    {"source", {{"path", source}, {"format", source_format}}},
                    {"target", {{"format", target_format}, {"type", type}}},
                    {"lossless", lossless},
                    {"weight_bytes", weight_bytes}};
  if (!edit.operation.empty()) json["edit"] = json_of(edit);
  for (const auto& [name, sum] : files)
    json["files"][name] = {{"bytes", sum.bytes}, {"xxh3", sum.hex()}};
  json["companions"] = companions;
  if (logits.compared) json["logits"] = json_of(logits);
  json["unaccounted"] = unaccounted;
  json["unused"] = unused;
  for (const ReceiptTensor& tensor : tensors) json["tensors"].push_back(json_of(tensor));
  for (const auto& [name, target] : targets)
    json["targets"][name] = {{"type", target.type}, {"shape", target.shape}, {"xxh3", target.sum}};
  return json.dump(1) + "\n";
}

Receipt Receipt::load(const std::filesystem::path& file) {
  const Json json = Json::load(file, {.bytes = uint64_t{256} << 20, .depth = 16});
  Receipt receipt;
  if (json.at("receipt").as_int() != kVersion)
    throw Error(fmt::format("{}: expected {}; the receipt is of another version of this program",
                            json.at("receipt").where(), kVersion));
  receipt.source = json.at("source").at("path").as_string();
  receipt.source_format = json.at("source").at("format").as_string();
  receipt.target_format = json.at("target").at("format").as_string();
  receipt.type = json.at("target").at("type").as_string();
  receipt.lossless = json.at("lossless").as_bool();
  receipt.weight_bytes = static_cast<uint64_t>(json.at("weight_bytes").as_int());
  for (const auto& [name, sum] : json.at("files").members()) receipt.files[name] = parse_sum(sum);
  receipt.companions = texts(json.at("companions"));
  receipt.unaccounted = texts(json.at("unaccounted"));
  receipt.unused = texts(json.at("unused"));
  for (const Json& tensor : json.at("tensors").items())
    receipt.tensors.push_back(tensor_of(tensor));
  for (const auto& [name, target] : json.at("targets").members())
    receipt.targets[name] = {.type = target.at("type").as_string(),
                             .shape = integers(target.at("shape")),
                             .sum = target.at("xxh3").as_string()};
  if (const Json* logits = json.find("logits")) receipt.logits = logits_of(*logits);
  if (const Json* edit = json.find("edit")) receipt.edit = edit_of(*edit);
  return receipt;
}

std::filesystem::path receipt_path(const std::filesystem::path& model) {
  std::error_code error;
  if (std::filesystem::is_directory(model, error)) return model / "receipt.json";
  return model.string() + ".receipt.json";
}

}  // namespace mixtral
