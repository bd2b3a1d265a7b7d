#pragma once

#include "serve/models.h"
#include "serve/router.h"

namespace mixtral::serve {

/// Routes that change what the server has, for who has the administrator's key. As llama.cpp's
/// router has them: POST /models/load {model, pin}, /models/unload {model}. As vLLM has them:
/// POST /v1/load_lora_adapter {lora_name, lora_path}, /v1/unload_lora_adapter {lora_name}, each
/// with `model` for another base than the first. Each is answered when it is done. The models must
/// outlive the router.
void add_management_routes(Router& router, Models& models);

}  // namespace mixtral::serve
