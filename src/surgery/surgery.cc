#include "surgery/surgery.h"

#include "convert/edited_tensors.h"

namespace mixtral {

SurgeryResult write_edited(Backend& backend, const ModelEdit& edit, ConvertOptions options,
                           const HostBatch* text, const ConvertProgress& progress) {
  // Nor may the target be one of the others.
  for (const ModelSource* source : edit.sources) check_target(*source, options);
  options.edit = &edit;
  const ModelSource& base = *edit.sources.front();
  const ModelSource edited =
      base.with_weights(edit.config, std::make_shared<EditedTensors>(edit, options.threads));
  SurgeryResult result{.receipt = convert_model(edited, options, progress), .quality = {}};
  if (!text) return result;
  const ModelSource written = ModelSource::resolve({.model = options.out.string()});
  result.quality = measure_quality(backend, {base.tensors(), base.config()},
                                   {written.tensors(), written.config()}, *text);
  return result;
}

}  // namespace mixtral
