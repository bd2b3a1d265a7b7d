#include "data/import.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>
#include <set>

#include "base/advice.h"
#include "base/error.h"
#include "base/file.h"
#include "data/record.h"
#include "text/utf8.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kManyFiles = 20;
constexpr uint64_t kFileLimit = uint64_t{4} << 30;

std::string lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

/// Whether a link in a folder leads to a file outside it, which nobody asked to import.
bool leads_out(const fs::directory_entry& entry, const fs::path& folder) {
  if (!entry.is_symlink()) return false;
  const fs::path root = fs::canonical(folder), target = fs::canonical(entry.path());
  return std::mismatch(root.begin(), root.end(), target.begin(), target.end()).first != root.end();
}

std::vector<fs::path> find_files(const ImportOptions& options) {
  std::set<fs::path> found;
  for (const fs::path& input : options.inputs) {
    if (!fs::exists(input)) {
      throw Error(fmt::format("{}: there is no such file or folder to import", input.string()));
    }
    if (!fs::is_directory(input)) {
      found.insert(input);
      continue;
    }
    for (const auto& entry : fs::recursive_directory_iterator(input)) {
      if (!entry.is_regular_file() || leads_out(entry, input)) continue;
      const std::string extension = lower(entry.path().extension().string());
      const auto& wanted = options.extensions;
      if (std::find(wanted.begin(), wanted.end(), extension) != wanted.end()) {
        found.insert(entry.path());
      }
    }
  }
  if (found.empty()) {
    throw AdvisedError(
        fmt::format("found no files to import with the extensions {}; set ‹extensions›",
                    fmt::join(options.extensions, ", ")));
  }
  return {found.begin(), found.end()};
}

void append_utf8(std::string& out, uint32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0 | c >> 6);
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    out += static_cast<char>(0xE0 | c >> 12);
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | c >> 18);
    out += static_cast<char>(0x80 | (c >> 12 & 0x3F));
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  }
}

std::string from_utf16(std::string_view bytes, bool big_endian) {
  auto unit = [&](size_t i) {
    const auto a = static_cast<unsigned char>(bytes[i]),
               b = static_cast<unsigned char>(bytes[i + 1]);
    return static_cast<uint32_t>(big_endian ? a << 8 | b : b << 8 | a);
  };
  std::string text;
  for (size_t i = 0; i + 1 < bytes.size(); i += 2) {
    uint32_t c = unit(i);
    if (c >= 0xD800 && c < 0xDC00 && i + 3 < bytes.size()) {
      const uint32_t low = unit(i + 2);
      if (low >= 0xDC00 && low < 0xE000) {
        c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
        i += 2;
      }
    }
    append_utf8(text, c >= 0xD800 && c < 0xE000 ? 0xFFFD : c);
  }
  return text;
}

/// The text of a file as clean UTF-8 with LF line ends; empty, with the reason among `skipped`,
/// when it is no text.
std::string read_text(const fs::path& path, const ImportOptions& options, ImportSummary& summary) {
  std::string bytes = read_file(path, kFileLimit);
  const std::string name = path.string();
  if (bytes.starts_with("\xFF\xFE") || bytes.starts_with("\xFE\xFF")) {
    bytes = from_utf16(std::string_view(bytes).substr(2), bytes[0] == '\xFE');
    summary.notes.push_back(name + ": converted from UTF-16");
  } else if (bytes.find('\0') != std::string::npos) {
    summary.skipped.push_back(name + ": holds NUL bytes, so it is probably no text");
    return {};
  } else if (options.encoding == TextEncoding::latin1) {
    std::string text;
    for (unsigned char c : bytes) append_utf8(text, c);
    bytes = std::move(text);
  }
  if (bytes.starts_with("\xEF\xBB\xBF")) {
    bytes.erase(0, 3);
    summary.notes.push_back(name + ": a byte order mark was dropped");
  }
  std::erase(bytes, '\0');
  if (!is_valid_utf8(bytes)) {
    size_t bad = 0, first_line = 0, line = 1;
    for (size_t i = 0; i < bytes.size();) {
      const size_t length = utf8_length(std::string_view(bytes).substr(i));
      if (length == 0 && bad++ == 0) first_line = line;
      line += bytes[i] == '\n';
      i += std::max<size_t>(length, 1);
    }
    summary.notes.push_back(
        fmt::format("{}:{}: {} bytes from here on are no UTF-8 and became U+FFFD; is the setting "
                    "encoding to be latin1?",
                    name, first_line, bad));
    bytes = to_valid_utf8(bytes);
  }
  if (bytes.find('\r') != std::string::npos) {
    std::string text;
    for (size_t i = 0; i < bytes.size(); ++i) {
      if (bytes[i] != '\r') {
        text += bytes[i];
      } else if (i + 1 == bytes.size() || bytes[i + 1] != '\n') {
        text += '\n';
      }
    }
    bytes = std::move(text);
    summary.notes.push_back(name + ": CR LF line ends became LF");
  }
  const bool blank =
      std::all_of(bytes.begin(), bytes.end(), [](unsigned char c) { return std::isspace(c) != 0; });
  if (blank) {
    summary.skipped.push_back(name + ": is empty");
    return {};
  }
  return bytes;
}

bool is_heading(std::string_view line) {
  const std::string start = lower(std::string(line.substr(0, 9)));
  return start.starts_with("chapter ") || start.starts_with("# ") || start.starts_with("## ") ||
         start.starts_with("part ") || start.starts_with("act ") || start.starts_with("scene ");
}

/// How good a place to cut is: the higher the better; 0: none.
int cut_quality(std::string_view text, size_t at) {
  const char before = text[at - 1];
  if (before != '\n') {
    if (before != ' ') return 0;
    const char stop = at >= 2 ? text[at - 2] : ' ';
    return stop == '.' || stop == '!' || stop == '?' ? 2 : 1;
  }
  const bool paragraph = at >= 2 && text[at - 2] == '\n';
  if (!paragraph) return 3;
  return is_heading(text.substr(at)) ? 5 : 4;
}

std::string trimmed(std::string_view text) {
  auto space = [](char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; };
  while (!text.empty() && space(text.back())) text.remove_suffix(1);
  while (!text.empty() && (text.front() == '\n' || text.front() == ' ')) text.remove_prefix(1);
  return std::string(text);
}

}  // namespace

std::vector<std::string> split_document(std::string_view text, int64_t limit) {
  CHECK(limit > 0);
  std::vector<std::string> pieces;
  auto add = [&](std::string_view piece) {
    std::string clean = trimmed(piece);
    if (!clean.empty()) pieces.push_back(std::move(clean));
  };
  const auto most = static_cast<size_t>(limit);
  while (text.size() > most) {
    // The best cut in the last three quarters of what fits; of equals, the latest.
    size_t cut = 0;
    int quality = 0;
    for (size_t at = most; at > most / 4; --at) {
      const int q = cut_quality(text, at);
      if (q > quality) {
        quality = q;
        cut = at;
      }
    }
    if (cut == 0) {
      cut = most;
      while (cut > 1 && (static_cast<unsigned char>(text[cut]) & 0xC0) == 0x80) --cut;
    }
    add(text.substr(0, cut));
    text.remove_prefix(cut);
  }
  add(text);
  return pieces;
}

ImportSummary import_texts(const ImportOptions& options) {
  options.shares.validate();
  if (options.max_characters < 100) throw AdvisedUsageError("‹max-chars› must be at least 100");
  ImportSummary summary;
  const auto files = find_files(options);
  const bool by_file = static_cast<int64_t>(files.size()) >= kManyFiles;

  struct Document {
    std::string text;
    size_t unit;  // documents of a unit stay together
  };
  std::vector<Document> documents;
  size_t units = 0;
  for (const fs::path& path : files) {
    const std::string text = read_text(path, options, summary);
    if (text.empty()) continue;
    ++summary.files;
    for (std::string& piece : split_document(text, options.max_characters)) {
      documents.push_back({std::move(piece), units});
      if (!by_file) ++units;
    }
    if (by_file) ++units;
  }
  if (documents.empty()) {
    throw Error(fmt::format("none of {} files could be imported{}", files.size(),
                            summary.skipped.empty() ? "" : "; " + summary.skipped.front()));
  }

  const std::vector<Split> split =
      deal_out(units, options.shares, by_file ? "files" : "documents",
               by_file ? "" : ", or cut texts into more documents with ‹max-chars›");
  SplitFiles split_files(
      options.out, split,
      options.overwrite ? SplitFiles::Existing::replace : SplitFiles::Existing::refuse);
  for (const Document& document : documents) {
    const auto s = static_cast<size_t>(split[document.unit]);
    split_files.write(split[document.unit], nlohmann::ordered_json{{"text", document.text}}.dump());
    ++summary.documents[s];
    summary.bytes[s] += static_cast<int64_t>(document.text.size());
  }
  split_files.commit();
  return summary;
}

}  // namespace mixtral
