#pragma once

#include "serve/models.h"
#include "serve/router.h"

namespace mixtral::serve {

/// POST /slots/{id}?action=save|restore|erase, as llama.cpp's server has it, for who has the
/// administrator's key: writes what a model's cache keeps of earlier prompts to a file, {filename}
/// in the server's folder of states, reads it back, or drops it. All answers share one cache, so
/// its id is 0; `model` names another model than the first. The models must outlive the router.
void add_slots_route(Router& router, Models& models);

}  // namespace mixtral::serve
