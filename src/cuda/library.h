#pragma once

#include <string>

namespace mixtral::cuda {

/// A shared library that is found at run time, so that the program starts on machines without it.
class Library {
 public:
  /// Looks where the system's loader does, then in CUDA's usual folders. Not found: see found().
  explicit Library(const std::string& name);
  ~Library();
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  bool found() const { return handle_ != nullptr; }
  void* handle() const { return handle_; }

  /// The function of that name, of the type of `prototype`. Throws Error when the library lacks it.
  template <class F>
  void bind(F& function, const char* name) const {
    function = reinterpret_cast<F>(symbol(name));
  }

 private:
  void* symbol(const char* name) const;

  std::string name_;
  void* handle_ = nullptr;
};

}  // namespace mixtral::cuda
