#include "cli/common.h"

int main(int argc, char** argv) { return mixtral::run_command_line(argc, argv); }
