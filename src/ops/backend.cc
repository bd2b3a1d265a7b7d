#include "ops/backend.h"

#include <utility>

namespace mixtral {
namespace {

class CallAgain : public Program {
 public:
  explicit CallAgain(std::function<void()> work) : work_(std::move(work)) {}
  void replay() override { work_(); }

 private:
  std::function<void()> work_;
};

}  // namespace

std::unique_ptr<Program> Backend::record(std::function<void()> work) {
  work();
  return std::make_unique<CallAgain>(std::move(work));
}

}  // namespace mixtral
