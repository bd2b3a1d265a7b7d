#include "cli/commands.h"

#include "cli/bench_command.h"
#include "cli/chat_command.h"
#include "cli/convert_command.h"
#include "cli/data_command.h"
#include "cli/evaluate_command.h"
#include "cli/experts_command.h"
#include "cli/finetune_command.h"
#include "cli/generate_command.h"
#include "cli/merge_command.h"
#include "cli/plot_command.h"
#include "cli/pretrain_command.h"
#include "cli/quantize_command.h"
#include "cli/serve_command.h"
#include "cli/tokenizer_command.h"

namespace mixtral {

void add_commands(cli::App& app) {
  add_bench_command(app);
  add_chat_command(app);
  add_convert_command(app);
  add_data_command(app);
  add_evaluate_command(app);
  add_experts_command(app);
  add_finetune_command(app);
  add_generate_command(app);
  add_info_command(app);
  add_inspect_command(app);
  add_merge_command(app);
  add_plot_command(app);
  add_pretrain_command(app);
  add_quantize_command(app);
  add_serve_command(app);
  add_tokenizer_command(app);
  add_reference_commands(app);
}

}  // namespace mixtral
