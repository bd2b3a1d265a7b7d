#include "cli/train_session.h"

#include <gtest/gtest.h>

#include "backends/planning.h"
#include "backends/registry.h"
#include "tests/support/models.h"

namespace mixtral {
namespace {

TEST(TrainingMemoryOnACpu, IsRefusedForWhatIsNewAloneNotForWhatTheProgramHoldsAlready) {
  const ModelConfig config = testing::minimal_config();
  const TrainingShape shape{
      .config = config, .options = {}, .objective = {}, .optimizer = {}, .context = 16};
  const auto backend_with = [](int64_t available) {
    return PlanningBackend(PlanningBackend::Device{
        .name = "cpu", .memory = {.available = available}, .slice_elements = int64_t{1} << 20});
  };
  const PlanningBackend plenty = backend_with(int64_t{1} << 40);
  const int64_t steps = plan_training(*make_planning_backend(&plenty), shape).total();
  const int64_t planned = require_training_memory(plenty, shape).planned;
  EXPECT_GT(planned, steps) << "the program counts, too";
  // What the program holds already, some megabytes, need not be free once more.
  EXPECT_NO_THROW(require_training_memory(backend_with(planned - 1'000'000), shape));
  EXPECT_THROW(require_training_memory(backend_with(steps - 1), shape), Error);
}

}  // namespace
}  // namespace mixtral
