#include "cli/line_editor.h"

#include <histedit.h>
#include <unistd.h>

#include <algorithm>
#include <clocale>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <utility>

namespace mixtral {
namespace {

namespace fs = std::filesystem;

constexpr int kHistoryLines = 1000;

/// Characters of UTF-8 text.
int characters(const char* begin, const char* end) {
  return static_cast<int>(std::count_if(
      begin, end, [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

std::string common_start(const std::vector<std::string>& texts) {
  std::string start = texts.front();
  for (const std::string& text : texts) {
    const auto differ = std::ranges::mismatch(start, text).in1;
    start.erase(differ, start.end());
  }
  return start;
}

}  // namespace

/// The terminal's editor, and what its callbacks need.
struct LineEditor::Terminal {
  Options options;
  EditLine* editor = nullptr;
  History* history = nullptr;
  std::string prompt;
  bool leaving = false;  // a Ctrl-C cleared the line, and nothing was typed since

  explicit Terminal(Options given) : options(std::move(given)) {
    // The library counts characters, not bytes, as the locale says.
    if (!std::setlocale(LC_CTYPE, "C.UTF-8")) std::setlocale(LC_CTYPE, "");
    editor = ::el_init("mixtral", stdin, stdout, stderr);
    history = ::history_init();
    HistEvent event;
    ::history(history, &event, H_SETSIZE, kHistoryLines);
    ::history(history, &event, H_SETUNIQUE, 1);
    if (!options.history.empty()) ::history(history, &event, H_LOAD, options.history.c_str());
    ::el_set(editor, EL_CLIENTDATA, this);
    ::el_set(editor, EL_PROMPT, &Terminal::show_prompt);
    ::el_set(editor, EL_EDITOR, "emacs");
    ::el_set(editor, EL_SIGNAL, 1);  // follows changes of the terminal's size
    ::el_set(editor, EL_HIST, ::history, history);
    // Ctrl-C comes as a character while a line is edited, and as a signal at other times.
    ::el_set(editor, EL_SETTY, "-d", "-isig", nullptr);
    ::el_set(editor, EL_ADDFN, "clear-or-leave", "Clear the line, or leave", &Terminal::interrupt);
    ::el_set(editor, EL_BIND, "^C", "clear-or-leave", nullptr);
    ::el_set(editor, EL_ADDFN, "complete", "Complete a command", &Terminal::complete);
    ::el_set(editor, EL_BIND, "^I", "complete", nullptr);
    ::el_set(editor, EL_BIND, "^R", "em-inc-search-prev", nullptr);
  }
  ~Terminal() {
    ::history_end(history);
    ::el_end(editor);
  }
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  static Terminal& of(EditLine* editor) {
    void* self = nullptr;
    ::el_get(editor, EL_CLIENTDATA, &self);
    return *static_cast<Terminal*>(self);
  }
  static char* show_prompt(EditLine* editor) { return of(editor).prompt.data(); }

  static unsigned char interrupt(EditLine* editor, int) {
    Terminal& self = of(editor);
    const LineInfo* line = ::el_line(editor);
    if (line->lastchar == line->buffer) {
      if (self.leaving) return CC_EOF;
      self.leaving = true;
      std::fputs("\n(Ctrl-C again leaves; so does Ctrl-D)\n", stdout);
      std::fflush(stdout);
      return CC_REDISPLAY;
    }
    self.leaving = true;
    const int behind = characters(line->cursor, line->lastchar);
    const int all = characters(line->buffer, line->lastchar);
    ::el_cursor(editor, behind);
    ::el_deletestr(editor, all);
    return CC_REFRESH;
  }

  static unsigned char complete(EditLine* editor, int) {
    const LineInfo* line = ::el_line(editor);
    const std::string text(line->buffer, line->cursor);
    const auto found = completions(text, of(editor).options.commands);
    if (found.empty()) return CC_ERROR;
    const std::string start = common_start(found);
    if (start.size() > text.size())
      return ::el_insertstr(editor, start.c_str() + text.size()) == 0
                 ? static_cast<unsigned char>(CC_REFRESH)
                 : static_cast<unsigned char>(CC_ERROR);
    if (found.size() == 1) return CC_ERROR;
    std::fputc('\n', stdout);
    for (const std::string& each : found) std::fprintf(stdout, "%s\n", each.c_str());
    std::fflush(stdout);
    return CC_REDISPLAY;
  }

  std::optional<std::string> read(const std::string& with_prompt) {
    prompt = with_prompt;
    // Before the prompt shows, so that a quick Ctrl-C is a character, not a signal.
    ::el_set(editor, EL_PREP_TERM, 1);
    int count = 0;
    const char* line = ::el_gets(editor, &count);
    if (line == nullptr || count <= 0) return std::nullopt;
    leaving = false;
    std::string text(line, static_cast<size_t>(count));
    while (text.ends_with('\n') || text.ends_with('\r')) text.pop_back();
    if (!text.empty()) remember(text);
    return text;
  }

  void remember(const std::string& text) const {
    HistEvent event;
    ::history(history, &event, H_ENTER, text.c_str());
    if (options.history.empty()) return;
    std::error_code error;  // without a history the conversation goes on all the same
    fs::create_directories(options.history.parent_path(), error);
    if (!error) ::history(history, &event, H_SAVE, options.history.c_str());
  }
};

LineEditor::LineEditor(Options options) {
  if (::isatty(STDIN_FILENO) != 0 && ::isatty(STDOUT_FILENO) != 0)
    terminal_ = std::make_unique<Terminal>(std::move(options));
}

LineEditor::~LineEditor() = default;

std::optional<std::string> LineEditor::read_one(const std::string& prompt) {
  if (terminal_) return terminal_->read(prompt);
  std::string line;
  if (!std::getline(std::cin, line)) return std::nullopt;
  if (!line.empty() && line.back() == '\r') line.pop_back();
  return line;
}

std::optional<std::string> LineEditor::read(const std::string& prompt) {
  auto line = read_one(prompt);
  while (line && line->ends_with('\\')) {
    line->back() = '\n';
    const auto more = read_one("... ");
    if (!more) break;
    *line += *more;
  }
  return line;
}

std::vector<std::string> completions(const std::string& line,
                                     const std::vector<std::string>& commands) {
  std::vector<std::string> found;
  const size_t space = line.find(' ');
  if (!line.starts_with('/')) return found;
  if (space == std::string::npos) {
    for (const std::string& command : commands)
      if (command.starts_with(line)) found.push_back(command + " ");
    return found;
  }
  const std::string command = line.substr(0, space + 1), typed = line.substr(space + 1);
  const fs::path path(typed);
  const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (!name.starts_with(path.filename().string())) continue;
    const fs::path whole = path.has_parent_path() ? path.parent_path() / name : fs::path(name);
    found.push_back(command + whole.string() + (entry->is_directory(error) ? "/" : ""));
  }
  std::ranges::sort(found);
  return found;
}

fs::path state_file(const std::string& name) {
  const char* state = std::getenv("XDG_STATE_HOME");
  if (state != nullptr && *state == '/') return fs::path(state) / "mixtral" / name;
  const char* home = std::getenv("HOME");
  if (home == nullptr || *home == '\0') return {};
  return fs::path(home) / ".local" / "state" / "mixtral" / name;
}

}  // namespace mixtral
