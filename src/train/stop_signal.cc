#include "train/stop_signal.h"

#include <unistd.h>

#include <csignal>

#include "base/error.h"

namespace mixtral {
namespace {

// A signal handler can reach nothing but globals.
volatile std::sig_atomic_t arrived_signal = 0;
bool in_use = false;

struct sigaction before_hangup;

void remember(int signal) {
  if (signal == SIGHUP && arrived_signal != 0) return;
  if (arrived_signal != 0 && arrived_signal != SIGHUP) ::_exit(128 + signal);
  arrived_signal = signal;
}

}  // namespace

StopSignal::StopSignal() {
  CHECK(!in_use, "two StopSignals at once");
  in_use = true;
  arrived_signal = 0;
  struct sigaction action{};
  action.sa_handler = remember;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
  ::sigaction(SIGHUP, nullptr, &before_hangup);
  if (before_hangup.sa_handler != SIG_IGN) ::sigaction(SIGHUP, &action, nullptr);
  for (const int signal : {SIGXFSZ, SIGPIPE}) std::signal(signal, SIG_IGN);
}

StopSignal::~StopSignal() {
  for (const int signal : {SIGINT, SIGTERM, SIGXFSZ, SIGPIPE}) std::signal(signal, SIG_DFL);
  ::sigaction(SIGHUP, &before_hangup, nullptr);
  in_use = false;
}

int StopSignal::arrived() const { return arrived_signal; }

}  // namespace mixtral
