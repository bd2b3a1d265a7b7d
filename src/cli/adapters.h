#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "cli/common.h"
#include "model/adapter.h"
#include "text/chat_template.h"

namespace mixtral {

/// What --adapter names: an adapter directory, or the best (else the latest) checkpoint of a run
/// that trained one. Throws Error, which says what was looked for.
std::filesystem::path resolve_adapter(const std::string& adapter);

/// Where --model names a run that trained an adapter, and --adapter is not given: makes `adapter`
/// that adapter, and `model` the base that it was trained on. Otherwise changes nothing. Throws
/// Error when the base is not known, or not where it was.
void settle_adapter(std::string& model, std::string& adapter);

/// What --dtype means where an adapter is trained: as for training, except that the base, which
/// stays as it is, is held in 16 bits if it is stored so, or --dtype bf16 asks for it.
Precision adapter_precision(std::string_view dtype, const Backend& backend, Dtype stored);

/// A model for inference, and the adapter on it, if any.
struct OpenModel {
  std::unique_ptr<Mixtral> model;
  std::unique_ptr<Adapter> adapter;  // goes before the model
};
/// Opens what --model and --adapter (may be empty) name, with room for `sequences` sequences of
/// `context` tokens.
OpenModel open_for_inference(Backend& backend, const CommonOptions& common,
                             const std::string& model, const std::string& adapter, int64_t context,
                             int64_t sequences = 1);

/// The chat template that the adapter, or else the model, was trained with, where it says so.
std::optional<ChatTemplate> find_chat_template(const std::string& model,
                                               const std::string& adapter);

}  // namespace mixtral
