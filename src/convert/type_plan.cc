#include "convert/type_plan.h"

#include <cmath>

namespace mixtral {
namespace {

uint64_t bytes_of(const OutputTensor& output, const StoredType& type) {
  return static_cast<uint64_t>(static_cast<double>(output.count() * output.part_shape.numel()) *
                               type.bits_per_weight(output.columns()) / 8);
}

int bits_of(const StoredType& type) { return type.grouped() ? type.bits : type.format.row().bits; }

}  // namespace

double TypePlanner::Choice::gain() const {
  return (noise[chosen] - noise[chosen + 1]) /
         static_cast<double>(bytes[chosen + 1] - bytes[chosen]);
}

TypePlanner::TypePlanner(const std::vector<OutputTensor>& outputs, const Sensitivity& sensitivity) {
  for (const OutputTensor& output : outputs) {
    double noise = 0;
    bool known = false;
    for (const TensorId& id : output.parts) {
      const auto found = sensitivity.noise.find(id);
      if (found == sensitivity.noise.end()) continue;
      known = true;
      noise += found->second;
    }
    Choice choice{.name = output.name, .types = {output.type}, .bytes = {}, .noise = {}};
    if (known) choice.types = type_ladder(output.type, output.columns());
    for (const StoredType& type : choice.types) {
      choice.bytes.push_back(bytes_of(output, type));
      choice.noise.push_back(noise * std::pow(4.0, kSurveyBits - bits_of(type)));
    }
    choices_.push_back(std::move(choice));
  }
}

bool TypePlanner::step(uint64_t bytes) {
  const uint64_t used = this->bytes();
  Choice* best = nullptr;
  for (Choice& choice : choices_) {
    if (choice.chosen + 1 == choice.types.size()) continue;
    if (used + choice.bytes[choice.chosen + 1] - choice.bytes[choice.chosen] > bytes) continue;
    if (!best || choice.gain() > best->gain()) best = &choice;
  }
  if (best) ++best->chosen;
  return best != nullptr;
}

void TypePlanner::fill(uint64_t bytes) {
  while (step(bytes)) {
  }
}

void TypePlanner::quieten(double noise, uint64_t bytes) {
  while (this->noise() > noise && step(bytes)) {
  }
}

double TypePlanner::noise() const {
  double sum = 0;
  for (const Choice& choice : choices_) sum += choice.noise[choice.chosen];
  return sum;
}

uint64_t TypePlanner::bytes() const {
  uint64_t sum = 0;
  for (const Choice& choice : choices_) sum += choice.bytes[choice.chosen];
  return sum;
}

TypePlan TypePlanner::types() const {
  TypePlan plan;
  for (const Choice& choice : choices_) plan[choice.name] = choice.types[choice.chosen];
  return plan;
}

}  // namespace mixtral
