#include "model/adapter_places.h"

#include <algorithm>

namespace mixtral {

std::unique_ptr<nn::Projection>& projection_of(Mixtral& model, const AdapterModule& module) {
  if (module.layer < 0) return model.head_projection();
  Block& block = model.blocks()[static_cast<size_t>(module.layer)];
  const std::string& t = module.target;
  if (t == "q_proj" || t == "k_proj" || t == "v_proj") return block.attention.qkv;
  if (t == "o_proj") return block.attention.output;
  if (t == "gate") return block.experts.router;
  if (t == "w2" || t == "down_proj") return block.experts.down;
  return block.experts.gate_up;
}

int64_t first_column(const ModelConfig& c, std::string_view target) {
  if (target == "k_proj") return c.num_heads * c.head_dim;
  if (target == "v_proj") return (c.num_heads + c.num_kv_heads) * c.head_dim;
  if (target == "w3") return c.intermediate_size;
  return 0;
}

void send_values(Backend& backend, const std::vector<float>& values, const Tensor& device) {
  const Buffer host(host_memory(), device.bytes());
  const Tensor typed = host.tensor(device.shape(), device.dtype());
  if (device.dtype() == Dtype::f64)
    std::ranges::transform(values, typed.as<double>(),
                           [](float value) { return static_cast<double>(value); });
  else
    std::ranges::copy(values, typed.as<float>());
  backend.upload(typed, device);
  backend.synchronize();  // the host's copy goes
}

}  // namespace mixtral
