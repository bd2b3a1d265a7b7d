#include "cuda/library.h"

#include <dlfcn.h>

#include "base/error.h"

namespace mixtral::cuda {

// Never unloaded: callers keep functions of it in static variables (cuDNN's frontend does).
Library::Library(const std::string& name) : name_(name) {
  for (const char* folder : {"", "/usr/local/cuda/lib64/", "/usr/local/cuda/lib/",
                             "/usr/local/cuda-13/lib64/", "/opt/cuda/lib64/"}) {
    handle_ = ::dlopen((folder + name).c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (handle_) return;
  }
}

Library::~Library() {
  if (handle_) ::dlclose(handle_);
}

void* Library::symbol(const char* name) const {
  void* function = ::dlsym(handle_, name);
  if (!function)
    throw Error(name_ + " lacks the function " + name + ": it is of another version than CUDA 13");
  return function;
}

}  // namespace mixtral::cuda
