#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

namespace mixtral::parquet {

/// Writes Thrift's compact protocol.
class Thrift {
 public:
  Thrift& integer(int id, int64_t value) {
    head(id, 6);
    return varint(static_cast<uint64_t>(value) << 1 ^ static_cast<uint64_t>(value >> 63));
  }
  Thrift& text(int id, std::string_view value) {
    head(id, 8);
    return varint(value.size()).raw(value);
  }
  Thrift& boolean(int id, bool value) {
    head(id, value ? 1 : 2);
    return *this;
  }
  Thrift& structure(int id, const Thrift& value) {
    head(id, 12);
    return raw(value.ended());
  }
  Thrift& structures(int id, const std::vector<Thrift>& values) {
    head(id, 9);
    raw(std::string(1, '\xFC')).varint(values.size());
    for (const Thrift& value : values) raw(value.ended());
    return *this;
  }
  Thrift& texts(int id, const std::vector<std::string>& values) {
    head(id, 9);
    raw(std::string(1, '\xF8')).varint(values.size());
    for (const std::string& value : values) varint(value.size()).raw(value);
    return *this;
  }
  std::string ended() const { return bytes_ + '\0'; }

 private:
  void head(int id, int type) {
    bytes_ += static_cast<char>(type);  // the long form, which may be used for any field
    varint(static_cast<uint64_t>(id) << 1);
  }
  Thrift& varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_ += static_cast<char>(value | 0x80);
    bytes_ += static_cast<char>(value);
    return *this;
  }
  Thrift& raw(std::string_view bytes) {
    bytes_ += bytes;
    return *this;
  }

  std::string bytes_;
};

enum Repetition { kRequired, kOptional, kRepeated };
enum Type { kBoolean, kInt32, kInt64, kInt96, kFloat, kDouble, kText, kFixed };

/// A field of the schema; a group has `children` fields behind it.
struct Field {
  std::string name;
  int type = -1;
  int repetition = kRequired;
  int children = 0;
  int converted = -1;  // as the format's ConvertedType: 1 a map, 3 a list
};

/// Levels, a run each.
inline std::string runs(const std::vector<int>& levels) {
  std::string bytes;
  for (const int level : levels) {
    bytes += '\x02';
    bytes += static_cast<char>(level);
  }
  return bytes;
}

inline std::string number(uint32_t value) {
  std::string bytes(sizeof value, '\0');
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}

inline std::string texts(std::initializer_list<std::string_view> values) {
  std::string bytes;
  for (const std::string_view value : values)
    bytes.append(number(static_cast<uint32_t>(value.size()))).append(value);
  return bytes;
}

/// A page: `entries` of them, levels where the column has some, values in `encoding`.
struct Page {
  int64_t entries = 0;
  std::vector<int> repetitions = {}, definitions = {};
  std::string values;
  int64_t encoding = 0;
  int version = 1;  // 0: a dictionary
  std::string (*compress)(const std::string&) = nullptr;
  int64_t size = -1;      // what the header says instead of the true one
  int64_t checksum = -1;  // -1: none
};

inline std::string page_bytes(const Page& page) {
  const std::string repetitions = runs(page.repetitions), definitions = runs(page.definitions);
  std::string levels, values = page.values;
  if (page.version == 2) {
    levels = repetitions + definitions;
  } else {
    for (const std::string& each : {repetitions, definitions})
      if (!each.empty()) levels += number(static_cast<uint32_t>(each.size())) + each;
    values = levels + values;
    levels.clear();
  }
  const auto size = static_cast<int64_t>(levels.size() + values.size());
  if (page.compress != nullptr) values = page.compress(values);
  Thrift part;
  part.integer(1, page.entries);
  if (page.version == 2) {
    part.integer(2, 0).integer(3, page.entries).integer(4, page.encoding);
    part.integer(5, static_cast<int64_t>(definitions.size()));
    part.integer(6, static_cast<int64_t>(repetitions.size()));
    part.boolean(7, page.compress != nullptr);
  } else {
    part.integer(2, page.encoding);
    if (page.version == 1) part.integer(3, 3).integer(4, 3);
  }
  Thrift header;
  header.integer(1, page.version == 0 ? 2 : page.version == 2 ? 3 : 0);
  header.integer(2, page.size < 0 ? size : page.size);
  header.integer(3, static_cast<int64_t>(levels.size() + values.size()));
  if (page.checksum >= 0) header.integer(4, page.checksum);
  header.structure(page.version == 0 ? 7 : page.version == 2 ? 8 : 5, part);
  return header.ended() + levels + values;
}

struct Column {
  std::vector<std::string> path;
  int type = kText;
  int64_t entries = 0;
  std::vector<Page> pages;
  int64_t codec = 0;
};

struct Table {
  std::vector<Field> fields;                // without the root
  int columns = 0;                          // fields that are none of a group
  std::vector<std::vector<Column>> groups;  // of rows
  std::vector<int64_t> rows;                // of each group

  /// The whole file.
  std::string bytes() const {
    std::string file = "PAR1";
    std::vector<Thrift> schema{Thrift().text(4, "schema").integer(5, columns)};
    for (const Field& field : fields) {
      Thrift element;
      if (field.type >= 0) element.integer(1, field.type);
      element.integer(3, field.repetition).text(4, field.name);
      if (field.children > 0) element.integer(5, field.children);
      if (field.converted >= 0) element.integer(6, field.converted);
      schema.push_back(element);
    }
    std::vector<Thrift> described;
    int64_t all = 0;
    for (size_t g = 0; g < groups.size(); ++g) {
      std::vector<Thrift> chunks;
      for (const Column& column : groups[g]) {
        const auto begin = static_cast<int64_t>(file.size());
        int64_t dictionary = 0, data = begin;
        for (const Page& page : column.pages) {
          file += page_bytes(page);
          if (page.version != 0) continue;
          dictionary = begin;
          data = static_cast<int64_t>(file.size());
        }
        Thrift meta;
        meta.integer(1, column.type).texts(3, column.path).integer(4, column.codec);
        meta.integer(5, column.entries);
        meta.integer(7, static_cast<int64_t>(file.size()) - begin).integer(9, data);
        if (dictionary > 0) meta.integer(11, dictionary);
        chunks.push_back(Thrift().integer(2, begin).structure(3, meta));
      }
      described.push_back(Thrift().structures(1, chunks).integer(3, rows[g]));
      all += rows[g];
    }
    Thrift footer;
    footer.integer(1, 2).structures(2, schema).integer(3, all).structures(4, described);
    const std::string written = footer.ended();
    return file + written + number(static_cast<uint32_t>(written.size())) + "PAR1";
  }
};

/// A table of one column of texts that are always there.
inline Table one_text_column(std::vector<Page> pages, int64_t rows, int64_t codec = 0) {
  return {
      .fields = {{.name = "text", .type = kText}},
      .columns = 1,
      .groups = {{{.path = {"text"}, .entries = rows, .pages = std::move(pages), .codec = codec}}},
      .rows = {rows}};
}

}  // namespace mixtral::parquet
