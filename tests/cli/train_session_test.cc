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
  EXPECT_GT(require_training_memory(plenty, shape).planned, steps) << "the program counts, too";
  const int64_t added = steps + fixed_training_bytes();  // to what the program holds already
  EXPECT_NO_THROW(require_training_memory(backend_with(added), shape));
  EXPECT_THROW(require_training_memory(backend_with(added - 1), shape), Error);
}

}  // namespace
}  // namespace mixtral
