#include "io/parquet_rows.h"

#include <bit>
#include <cmath>
#include <iterator>

#include "base/printable.h"

namespace mixtral {
namespace {

constexpr size_t kLargestRow = size_t{64} << 20;
constexpr std::string_view kDisagreement =
    "does not agree with the columns beside it on what is there; the file is damaged";

/// A text between quotes. Bytes that are no UTF-8 stay.
void write_text(std::string_view text, std::string& json) {
  json += '"';
  size_t plain = 0;  // start of the characters that need no escape
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    if (c >= 0x20 && c != '"' && c != '\\') continue;
    json += text.substr(plain, i - plain);
    plain = i + 1;
    if (c == '"' || c == '\\') {
      json += '\\';
      json += text[i];
    } else if (c == '\n') {
      json += "\\n";
    } else {
      fmt::format_to(std::back_inserter(json), "\\u{:04x}", c);
    }
  }
  json += text.substr(plain);
  json += '"';
}

template <class Number>
void write_number(Number number, std::string& json) {
  if (std::isfinite(static_cast<double>(number)))
    fmt::format_to(std::back_inserter(json), "{}", number);
  else
    json += "null";  // JSON has no such number
}

/// Whether a list's repeated field is an element itself, not a group around one: the rules for
/// files older than the present form of lists
/// (https://github.com/apache/parquet-format/blob/master/LogicalTypes.md, "Backward-compatibility
/// rules").
bool is_element_itself(const ParquetMetadata& metadata, const ParquetNode& list,
                       const ParquetNode& repeated) {
  if (repeated.children.size() != 1) return true;
  const ParquetNode& child = metadata.nodes[static_cast<size_t>(repeated.children.front())];
  return child.repetition == ParquetNode::Repetition::repeated || repeated.name == "array" ||
         repeated.name == list.name + "_tuple";
}

void check_size(const std::string& json, const ParquetColumn& column) {
  if (json.size() > kLargestRow)
    column.place().fail(fmt::format("a row is larger than {} bytes", kLargestRow));
}

std::string_view unread_type(ParquetType type) {
  if (type == ParquetType::int96) return "a time as INT96";
  if (type == ParquetType::fixed_bytes) return "bytes of a fixed length";
  return {};
}

}  // namespace

void check_readable(const ParquetMetadata& metadata, int node, std::string_view source) {
  const ParquetNode& field = metadata.nodes[static_cast<size_t>(node)];
  const bool is_column = field.children.empty();
  const auto fail = [&](std::string_view what) {
    throw Error(
        fmt::format("{}: column {}: is {}, which is not read here; leave the column out, "
                    "or make it text or a number",
                    source, printable(field.path), what));
  };
  if (field.meaning == ParquetMeaning::map) fail("a map");
  if (field.meaning == ParquetMeaning::unread) fail(field.unread);
  if (field.meaning == ParquetMeaning::list) {
    if (field.children.size() != 1 ||
        metadata.nodes[static_cast<size_t>(field.children.front())].repetition !=
            ParquetNode::Repetition::repeated)
      fail("a list without a repeated field in it");
  }
  if (is_column && !unread_type(field.type).empty()) fail(unread_type(field.type));
  for (const int child : field.children) check_readable(metadata, child, source);
}

ParquetRowBuilder::ParquetRowBuilder(std::string_view file, std::string_view source,
                                     const ParquetMetadata& metadata, size_t group,
                                     const std::vector<ParquetKey>& keys)
    : metadata_(metadata), keys_(keys), columns_(metadata.columns.size()) {
  for (const ParquetKey& key : keys) {
    const ParquetNode& field = node_of(key.node);
    for (int i = field.first_column; i < field.end_column; ++i) {
      const auto column = static_cast<size_t>(i);
      const ParquetNode& leaf = node_of(metadata.columns[column]);
      columns_[column] = std::make_unique<ParquetColumn>(
          file, metadata.groups[group].chunks[column], leaf,
          ParquetPlace{
              fmt::format("{}: row group {}, column {}", source, group, printable(leaf.path))});
    }
  }
}

/// Whether a field is there, at the entries that its columns are at.
bool ParquetRowBuilder::is_there(const ParquetNode& node) const {
  const bool there = first_column(node).definition() >= node.definition_level;
  for (int i = node.first_column; i < node.end_column; ++i) {
    const ParquetColumn& column = *columns_[static_cast<size_t>(i)];
    if (column.at_end()) column.place().fail("ends before its rows do; the file is damaged");
    if ((column.definition() >= node.definition_level) != there) column.place().fail(kDisagreement);
  }
  return there;
}

/// Whether another item of a repeated field follows.
bool ParquetRowBuilder::goes_on(const ParquetNode& node) const {
  const bool more = first_column(node).repetition() == node.repetition_level;
  for (int i = node.first_column; i < node.end_column; ++i) {
    const ParquetColumn& column = *columns_[static_cast<size_t>(i)];
    if (column.repetition() > node.repetition_level ||
        (column.repetition() == node.repetition_level) != more)
      column.place().fail(kDisagreement);
  }
  return more;
}

/// Passes over the entry that says that a field is absent, or a list empty.
void ParquetRowBuilder::pass_over(const ParquetNode& node) {
  for (int i = node.first_column; i < node.end_column; ++i)
    columns_[static_cast<size_t>(i)]->advance();
}

void ParquetRowBuilder::write_field(const ParquetNode& node, std::string& json) {
  if (node.repetition == ParquetNode::Repetition::repeated) return write_items(node, true, json);
  if (is_there(node)) return write_present(node, json);
  pass_over(node);
  json += "null";
}

void ParquetRowBuilder::write_items(const ParquetNode& repeated, bool is_element,
                                    std::string& json) {
  json += '[';
  if (is_there(repeated)) {
    do {
      if (!is_there(repeated)) first_column(repeated).place().fail(kDisagreement);
      if (json.back() != '[') json += ',';
      check_size(json, first_column(repeated));
      is_element ? write_present(repeated, json)
                 : write_field(node_of(repeated.children.front()), json);
    } while (goes_on(repeated));
  } else {
    pass_over(repeated);
  }
  json += ']';
}

void ParquetRowBuilder::write_present(const ParquetNode& node, std::string& json) {
  if (node.children.empty()) return write_value(node, json);
  if (node.meaning == ParquetMeaning::list) {
    const ParquetNode& repeated = node_of(node.children.front());
    return write_items(repeated, is_element_itself(metadata_, node, repeated), json);
  }
  json += '{';
  for (const int child : node.children) {
    if (child != node.children.front()) json += ',';
    write_text(node_of(child).name, json);
    json += ':';
    write_field(node_of(child), json);
  }
  json += '}';
}

void ParquetRowBuilder::write_value(const ParquetNode& node, std::string& json) {
  ParquetColumn& column = first_column(node);
  const ParquetValue& value = column.value();
  const bool is_unsigned = node.meaning == ParquetMeaning::unsigned_integer;
  switch (node.type) {
    case ParquetType::text:
      write_text(value.text, json);
      break;
    case ParquetType::boolean:
      json += value.bits != 0 ? "true" : "false";
      break;
    case ParquetType::int32: {
      const auto bits = static_cast<uint32_t>(value.bits);
      is_unsigned ? write_number(bits, json) : write_number(static_cast<int32_t>(bits), json);
      break;
    }
    case ParquetType::int64:
      is_unsigned ? write_number(value.bits, json)
                  : write_number(static_cast<int64_t>(value.bits), json);
      break;
    case ParquetType::float32:
      write_number(std::bit_cast<float>(static_cast<uint32_t>(value.bits)), json);
      break;
    case ParquetType::float64:
      write_number(std::bit_cast<double>(value.bits), json);
      break;
    case ParquetType::int96:
    case ParquetType::fixed_bytes:
      CHECK(false, "a column that check_readable refuses");
  }
  check_size(json, column);
  column.advance();
}

void ParquetRowBuilder::next(std::string& json) {
  json.clear();
  json += '{';
  for (const ParquetKey& key : keys_) {
    if (json.size() > 1) json += ',';
    write_text(key.key, json);
    json += ':';
    const ParquetNode& field = node_of(key.node);
    write_field(field, json);
    for (int i = field.first_column; i < field.end_column; ++i)
      if (columns_[static_cast<size_t>(i)]->repetition() != 0)
        columns_[static_cast<size_t>(i)]->place().fail(kDisagreement);
  }
  json += '}';
}

void ParquetRowBuilder::finish() const {
  for (const auto& column : columns_)
    if (column && !column->at_end())
      column->place().fail("has more entries than its row group has rows; the file is damaged");
}

}  // namespace mixtral
